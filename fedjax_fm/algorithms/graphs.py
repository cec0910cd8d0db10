"""Graphs of clients, and the weights with which neighbours average.

    W_ij = 1 / (1 + max(d_i, d_j)) for neighbours, W_ii = 1 - sum of the row's others

after Metropolis and Hastings: symmetric, so that rows and columns add up to one.

References:
  Xiao, Boyd and Kim, Distributed average consensus with least-mean-square deviation,
  2007, Journal of Parallel and Distributed Computing 67(1).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from fedjax_fm import checks

MOST_NAMED = 8  # members of a component in a message
TOLERANCE = 1e-6  # of sums of rows and columns


def ring(n: int) -> list[tuple[int, int]]:
    """The edges of a ring.

    Args:
      n: clients, at least 1.

    Returns:
      (i, j) with i < j; one edge for two clients, none for one.

    Example:
      >>> ring(4)
      [(0, 1), (1, 2), (2, 3), (0, 3)]
    """
    checks.whole("n", n, least=1)
    path = [(k, k + 1) for k in range(n - 1)]
    return [*path, (0, n - 1)] if n > 2 else path


def complete(n: int) -> list[tuple[int, int]]:
    """All edges.

    Args:
      n: clients, at least 1.

    Returns:
      (i, j) with i < j.
    """
    checks.whole("n", n, least=1)
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def metropolis(edges: Iterable[tuple[int, int]], n: int) -> np.ndarray:
    """The mixing matrix of a graph.

    Args:
      edges: pairs of clients, each pair once or in both orders.
      n: clients.

    Returns:
      f64[n, n], symmetric, non-negative, every row with sum 1.

    Raises:
      ValueError: an edge to a client that is not there or to itself; a graph that is not
        connected, whose parts are named.

    Example:
      >>> metropolis(complete(4), 4)[0].tolist()
      [0.25, 0.25, 0.25, 0.25]
      >>> metropolis([(0, 1), (2, 3)], 4)
      Traceback (most recent call last):
      ...
      ValueError: the graph of 4 clients is not connected: {0, 1}, {2, 3} have no edge ...
    """
    adjacency = _adjacency(edges, n)
    degrees = adjacency.sum(axis=1)
    larger = np.maximum(degrees[:, None], degrees[None, :])
    mixing = np.where(adjacency, 1.0 / (1.0 + larger), 0.0)
    np.fill_diagonal(mixing, 1.0 - mixing.sum(axis=1))
    check_connected(adjacency)
    return mixing


def _adjacency(edges: Iterable[tuple[int, int]], n: int) -> np.ndarray:
    """bool[n, n] of checked edges."""
    checks.whole("n", n, least=1)
    adjacency = np.zeros((n, n), bool)
    for edge in edges:
        first, second = (int(end) for end in edge)
        if first == second or not (0 <= first < n and 0 <= second < n):
            raise ValueError(
                f"expected edges between two of the clients 0 to {n - 1}, got {edge}"
            )
        adjacency[first, second] = adjacency[second, first] = True
    return adjacency


def components(adjacency: np.ndarray) -> list[list[int]]:
    """The parts of a graph between which there is no way.

    Args:
      adjacency: bool[n, n], symmetric.

    Returns:
      Each part in order, the parts in the order of their first members.

    Example:
      >>> components(np.eye(3, k=1, dtype=bool) | np.eye(3, k=-1, dtype=bool))
      [[0, 1, 2]]
    """
    left, found = set(range(len(adjacency))), []
    while left:
        waiting, part = [min(left)], set()
        while waiting:
            here = waiting.pop()
            if here not in part:
                part.add(here)
                waiting.extend(np.flatnonzero(adjacency[here]).tolist())
        found.append(sorted(part))
        left -= part
    return found


def check_connected(adjacency: np.ndarray) -> None:
    """Raises ValueError for a graph in parts, and names them.

    Args:
      adjacency: bool[n, n], symmetric.
    """
    parts = components(adjacency)
    if len(parts) == 1:
        return
    shown = ", ".join(_named(part) for part in parts[:MOST_NAMED])
    more = f" and {len(parts) - MOST_NAMED} more" if len(parts) > MOST_NAMED else ""
    raise ValueError(
        f"the graph of {len(adjacency)} clients is not connected: {shown}{more} have no "
        "edge between them, so that their models never meet; add one"
    )


def _named(part: Sequence[int]) -> str:
    """A part, its first members by name."""
    first = ", ".join(str(k) for k in part[:MOST_NAMED])
    more = f" and {len(part) - MOST_NAMED} more" if len(part) > MOST_NAMED else ""
    return f"{{{first}{more}}}"


def checked_mixing(mixing: np.ndarray, n: int) -> np.ndarray:
    """f64[n, n] of a mixing matrix that keeps means and reaches everybody.

    Args:
      mixing: W.
      n: clients.

    Raises:
      ValueError: another shape, a negative entry, a row or column whose sum is not 1, a
        graph that is not connected.
    """
    found = np.asarray(mixing)
    if found.shape != (n, n) or not np.issubdtype(found.dtype, np.number):
        raise ValueError(
            f"expected mixing as numbers [{n}, {n}], one row for each of the {n} clients "
            f"of the population, got {found.dtype}{list(found.shape)}"
        )
    found = found.astype(np.float64)
    if not np.isfinite(found).all() or (found < 0).any():
        raise ValueError("expected finite mixing >= 0, got a negative entry or NaN")
    for axis, name in ((1, "row"), (0, "column")):
        sums = found.sum(axis=axis)
        worst = int(np.abs(sums - 1).argmax())
        if abs(sums[worst] - 1) > TOLERANCE:
            raise ValueError(
                f"expected rows and columns of mixing to add up to 1, got {sums[worst]:g} "
                f"in {name} {worst}: the mean of the models would drift; "
                "algorithms.graphs.metropolis makes such a matrix of any graph"
            )
    linked = found > 0
    check_connected(linked | linked.T)
    return found


def second_eigenvalue(mixing: np.ndarray) -> float:
    """By what disagreement shrinks at least in a round of averaging.

        max |lambda| over the eigenvalues of W - 1 1^T / n

    Args:
      mixing: W, symmetric and doubly stochastic.

    Returns:
      0 for a complete graph's, near 1 for a long ring's.

    Example:
      >>> round(second_eigenvalue(metropolis(ring(4), 4)), 4)  # (1 + 2 cos 90°) / 3
      0.3333
    """
    n = len(mixing)
    return float(np.abs(np.linalg.eigvalsh(mixing - np.full((n, n), 1 / n))).max())
