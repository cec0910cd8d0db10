"""Which clients' adapters resemble each other: FedLEASE's clusters.

Distances come from B, averaged over layers; clusters from average linkage; their number
is the one of the best silhouette.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.algorithms.lora_rules.factors import split
from fedjax_fm.types import Tree


class AdapterClusters(NamedTuple):
    """Clusters of clients.

    Attributes:
      labels: i32[N], the cluster of every client, numbered by its first client.
      silhouettes: {number of clusters: mean silhouette, from -1 to 1}, of all that were
        tried.
      distances: f64[N, N].
    """

    labels: np.ndarray
    silhouettes: dict[int, float]
    distances: np.ndarray


def cluster_adapters(deltas: Sequence[Tree], most: int) -> AdapterClusters:
    """Clusters clients by the B of the adapters that each has trained alone.

        distance of i and j = mean over matrices of 1 - cos(B_i, B_j)

    Args:
      deltas: of N clients, with `lora_a` and `lora_b`; at least three.
      most: the most clusters, from 2 to N - 1; all numbers from 2 on are tried.

    Returns:
      The clusters; of equal silhouettes, the fewest.

    Raises:
      TypeError, ValueError: an argument makes no sense, or a delta has no factors.

    References:
      Wang et al. 2025, arXiv 2509.15087.

    Example:
      >>> import numpy as np
      >>> def delta(angle):
      ...     b = np.array([[np.cos(angle), np.sin(angle)]])
      ...     return {"lora_a": np.ones((3, 1)), "lora_b": b}
      >>> found = cluster_adapters([delta(x) for x in (0.0, 1.5, 0.1, 1.6)], most=3)
      >>> found.labels.tolist()
      [0, 1, 0, 1]
    """
    n_clients = len(deltas)
    if n_clients < 3:
        raise ValueError(f"expected three clients or more, got {n_clients}")
    checks.whole("most", most, least=2, most=n_clients - 1)
    distances = _distances(deltas)
    merged = _average_linkage(distances)
    silhouettes = {k: _silhouette(distances, merged[k]) for k in range(2, most + 1)}
    best = max(silhouettes, key=lambda k: (silhouettes[k], -k))
    return AdapterClusters(merged[best], silhouettes, distances)


def _distances(deltas: Sequence[Tree]) -> np.ndarray:
    """f64[N, N]: the mean over matrices of 1 - cosine."""
    by_client = [_matrices(delta) for delta in deltas]
    found = []
    for of_clients in zip(*by_client, strict=True):
        rows = np.stack(of_clients)  # [N, numbers]
        sizes = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / np.where(sizes > 0, sizes, 1.0)
        found.append(1 - unit @ unit.T)
    mean = np.mean(found, axis=0)
    np.fill_diagonal(mean, 0.0)
    return mean


def _matrices(delta: Tree) -> list[np.ndarray]:
    """B of every layer, those of a stack one by one, each as one vector."""
    found = []
    for pair in split(delta).pairs.values():
        b = np.moveaxis(np.asarray(pair.b, np.float64), 0, -2)
        found += list(b.reshape(-1, b.shape[-2] * b.shape[-1]))
    return found


def _average_linkage(distances: np.ndarray) -> dict[int, np.ndarray]:
    """{number of clusters: labels i32[N]}, from N to 1, the nearest two joined each time."""
    groups = [[client] for client in range(len(distances))]
    found = {len(groups): _labels(groups)}
    while len(groups) > 1:
        nearest = min(
            (distances[np.ix_(groups[i], groups[j])].mean(), i, j)
            for i in range(len(groups))
            for j in range(i + 1, len(groups))
        )
        _, first, second = nearest
        groups[first] += groups.pop(second)
        found[len(groups)] = _labels(groups)
    return found


def _labels(groups: list[list[int]]) -> np.ndarray:
    """Numbers of groups by client, in the order of their first clients."""
    labels = np.empty(sum(map(len, groups)), np.int32)
    for number, group in enumerate(sorted(groups, key=min)):
        labels[group] = number
    return labels


def _silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """The mean over clients of (b - a) / max(a, b); 0 for a client that is alone.

    a is the mean distance from its own cluster, b that from the nearest other one.
    """
    values: list[Any] = []
    for client, own in enumerate(labels):
        others = {k: distances[client, labels == k] for k in set(labels) - {own}}
        inside = np.delete(distances[client], client)[np.delete(labels, client) == own]
        nearest = min(x.mean() for x in others.values())
        larger = max(inside.mean(), nearest) if len(inside) else 0.0
        values.append((nearest - inside.mean()) / larger if larger > 0 else 0.0)
    return float(np.mean(values))


def checked_labels(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """The cluster of every client, as i32[N].

    Args:
      labels: one whole number a client, from 0 on.

    Raises:
      ValueError: they are something else.
    """
    found = np.asarray(labels)
    is_whole = found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
    if not is_whole or len(found) == 0 or found.min() < 0:
        raise ValueError(
            f"expected labels to be one cluster >= 0 a client, got labels={labels}"
        )
    return found.astype(np.int32)


def check_labels(labels: np.ndarray, n_clusters: int, n_clients: int) -> None:
    """Refuses labels of other clusters or of too few clients.

    Args:
      labels: i32[N].
      n_clusters: that there are.
      n_clients: of the population.

    Raises:
      ValueError: a label beyond the clusters, or fewer labels than clients.
    """
    if labels.max() >= n_clusters:
        raise ValueError(
            f"expected clusters below {n_clusters}, the experts of the delta, got "
            f"{labels.max()}"
        )
    if len(labels) < n_clients:
        raise ValueError(
            f"expected a label for each of {n_clients} clients, got {len(labels)}"
        )
