"""A round in which every client holds a prefix of the model: HeteroFL and FjORD.

One exchange per width, widest first: only the clients of that width are computed in it,
on the statically sliced tree, so that a narrow client pays for what it holds, in time
and in bytes. The last exchange averages (`averaged`):

    w[e] <- w[e] - sum_k a_k (w - w_k)[e] / sum_k a_k
            over the clients k whose slice holds entry e

Entries that no client holds keep their value bit for bit. That is also FjORD's rule, to
overwrite the prefix of each width, from the widest to the narrowest, with the mean over
the clients that are at least as wide: the last to write an entry is the narrowest width
that holds it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.nested import Prefixes, check_width
from fedjax_fm.algorithms.parts import in_group
from fedjax_fm.algorithms.reduce import mean_of, total
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientData,
    ClientOutput,
    Exchange,
    Tree,
    Unbilled,
)

# Of each client, constant [N], or {width: share}: each round every client draws one.
Rates = Sequence[float] | np.ndarray | Mapping[float, float]

# `(backbone, delta slice, data, key) -> (trained slice, metrics, weight f32[])`
Work = Callable[[Tree, Tree, ClientData, jax.Array], tuple[Tree, dict, jax.Array]]


class ByWidthState(NamedTuple):
    """Server state; between rounds `sums` is empty.

    Attributes:
      delta: w.
      tiers: i32[N], which of the widths each client has in this round.
      owned: bool[N, K], the labels that each client has; () where they do not matter.
      sums: of the exchanges so far: (sum of a_k (w - w_k), sum of a_k).
    """

    delta: Tree
    tiers: jax.Array
    owned: jax.Array | tuple
    sums: tuple[tuple[Tree, jax.Array], ...] = ()


class Message(NamedTuple):
    """What clients of one width are sent; only the slice is billed."""

    delta: Tree  # the slice
    tiers: Any  # i32[N]
    owned: Any  # bool[N, K] or ()


class _Tiers(NamedTuple):
    """The widths that occur, and which client has which."""

    widths: tuple[float, ...]  # widest first
    of_clients: np.ndarray | None  # i32[N]; None where they are drawn
    shares: tuple[float, ...] | None  # of each width; None where they are given

    def drawn(self, key: jax.Array, n_clients: int) -> jax.Array:
        """i32[N]: which width each client has in a round."""
        if self.of_clients is not None:
            return jnp.asarray(self.of_clients)
        logits = jnp.log(jnp.array(self.shares))
        tiers = jax.random.categorical(key, logits, shape=(n_clients,))
        return tiers.astype(jnp.int32)


class _ByWidth(NamedTuple):
    """What `by_width` was given, checked."""

    prefixes: Prefixes
    tiers: _Tiers
    batches: Batches
    labels: np.ndarray | None


def by_width(
    work_at: Callable[[float], Work],
    prefixes: Prefixes,
    rates: Rates,
    batches: Batches,
    labels: np.ndarray | None = None,
) -> Algorithm:
    """The method whose clients train, each the slice of its width.

    Sends: the slice, down and up; who has which width and label is known from the
    start.

    Args:
      work_at: `width -> work`, a client's local training, `work(backbone, slice, data,
        key) -> (trained slice, metrics, weight f32[])`.
      prefixes: what a slice is.
      rates: the width of each client, [N], or {width: share}, drawn anew each round.
      batches: how a client walks its data.
      labels: bool[N, K], who has which label: entries of a "labels" axis are then
        averaged over those clients only that have the label, and every batch tells the
        loss `owned` bool[B, K].

    Returns:
      An algorithm whose server state is `ByWidthState`; clients keep nothing.

    Raises:
      TypeError, ValueError: widths or labels that make no sense; later, a delta,
        clients or batches that do not fit them.
    """
    tiers = _tiers(rates)
    if labels is not None:
        labels = _checked_labels(labels, prefixes.n_labels())
    method = _ByWidth(prefixes=prefixes, tiers=tiers, batches=batches, labels=labels)
    every_tier = range(len(tiers.widths))
    exchanges = tuple(_exchange(method, tier, work_at) for tier in every_tier)
    return Algorithm(init=partial(_init, method), exchanges=exchanges)


def _checked_labels(labels: np.ndarray, n_labels: int | None) -> np.ndarray:
    """The labels as an array, or a ValueError."""
    labels = np.asarray(labels)
    if labels.dtype != bool or labels.ndim != 2 or labels.shape[1] != n_labels:
        raise ValueError(
            f"expected labels of bool[clients, {n_labels}], as long as the axes of "
            f"labels, got {labels.dtype}{list(labels.shape)}"
        )
    return labels


def _init(method: _ByWidth, delta, key, setting) -> ByWidthState:
    """The full tree, and the widths of the first round."""
    method.prefixes.check(delta)
    named = (("rates", method.tiers.of_clients), ("labels", method.labels))
    for name, array in named:
        if array is not None and len(array) != setting.n_clients:
            raise ValueError(
                f"{name} are those of {len(array)} clients, the population "
                f"has {setting.n_clients}"
            )
    return ByWidthState(
        delta=delta,
        tiers=method.tiers.drawn(key, setting.n_clients),
        owned=() if method.labels is None else jnp.asarray(method.labels),
    )


def _exchange(
    method: _ByWidth, tier: int, work_at: Callable[[float], Work]
) -> Exchange:
    """Clients of one width train their slice; that of the last width averages."""
    width = method.tiers.widths[tier]
    work = work_at(width)

    def broadcast(state: ByWidthState) -> Message:
        return Message(
            delta=method.prefixes.take(state.delta, width),
            tiers=Unbilled(state.tiers),
            owned=Unbilled(state.owned),
        )

    return Exchange(
        broadcast=broadcast,
        client=lambda backbone, message: partial(_client, method, work, backbone),
        server=partial(_server, method, tier),
        reduce=total(partial(_weighted, method)),
        batches=method.batches,
        selects=in_group(tier, lambda message: message.tiers),
    )


def _client(
    method: _ByWidth, work: Work, backbone, message: Message, state, data, key
) -> ClientOutput:
    """Trains the slice; sends its change, and its weight for each label."""
    owned = None if method.labels is None else message.owned[data.id]
    if owned is not None:
        data = data._replace(batch=_with_owned(data.batch, owned))
    trained, metrics, weight = work(backbone, message.delta, data, key)
    if owned is not None:
        of_labels = owned.astype(jnp.float32)
        weight = weight * jnp.append(1.0, of_labels)
    return ClientOutput(
        upload=trees.subtract(message.delta, trained),
        weight=weight,
        state=state,
        metrics=metrics,
    )


def _weighted(method: _ByWidth, server, sent, weight):
    """(a_k (w - w_k), a_k)."""
    weights = _of_entries(method.prefixes, sent, weight)
    return jax.tree.map(jnp.multiply, weights, sent), weight


def _server(method: _ByWidth, tier: int, state: ByWidthState, aggregate, key):
    """Keeps the sums of this width; after those of the last one, averages."""
    sums = (*state.sums, aggregate.value)
    if tier + 1 < len(method.tiers.widths):
        return state._replace(sums=sums), {}
    tiers = state.tiers
    if method.tiers.shares is not None:
        tiers = method.tiers.drawn(key, state.tiers.shape[0])
    after = ByWidthState(
        delta=averaged(method.prefixes, state.delta, sums),
        tiers=tiers,
        owned=state.owned,
    )
    return after, {}


def averaged(
    prefixes: Prefixes, delta: Tree, sums: Sequence[tuple[Tree, jax.Array]]
) -> Tree:
    """The delta minus the mean of its updates, of each entry over the clients that hold it.

    Args:
      prefixes: what a slice is.
      delta: w.
      sums: of each width: (sum of a_k (w - w_k), a slice; sum of a_k: f32[], or f32[1 +
        K] with one more for each label).

    Returns:
      A tree like delta; entries that no client holds keep their value.
    """

    def in_place(updates: Tree, weight: jax.Array) -> tuple[Tree, Tree]:
        weights = _of_entries(prefixes, updates, weight)
        weights = jax.tree.map(
            lambda a, x: jnp.broadcast_to(a, x.shape), weights, updates
        )
        return prefixes.pad(updates), prefixes.pad(weights)

    in_full = [in_place(*pair) for pair in sums]
    total, weight = functools.reduce(trees.add, in_full)

    def one(w, total, weight):
        moved = w - mean_of(total, weight)
        return jnp.where(weight > 0, moved, w).astype(w.dtype)

    return jax.tree.map(one, delta, total, weight)


def _of_entries(prefixes: Prefixes, tree: Tree, weight: jax.Array) -> Tree:
    """The weight of each entry, as arrays that broadcast against a slice."""
    if weight.ndim == 0:
        return jax.tree.map(lambda x: weight, tree)
    return prefixes.by_label(tree, weight[1:], weight[0])


def _with_owned(batch: Callable, owned: jax.Array) -> Callable:
    """Batches that tell which labels their client has."""

    def wider(i):
        arrays, mask = batch(i)
        if "owned" in arrays:
            raise ValueError(
                "with labels=, every batch gets an array `owned`; the examples "
                "have one of that name"
            )
        shape = (mask.shape[0], owned.shape[0])
        return {**arrays, "owned": jnp.broadcast_to(owned, shape)}, mask

    return wider


def widths_of(rates: Rates) -> tuple[float, ...]:
    """The widths that occur, widest first.

    Args:
      rates: as of `by_width`.

    Raises:
      TypeError, ValueError: one of them is outside of (0, 1], there is none, or a share
        is not above 0.
    """
    return _tiers(rates).widths


def _tiers(rates: Rates) -> _Tiers:
    """The widths that occur, and who has which."""
    if isinstance(rates, Mapping):
        return _drawn_tiers(rates)
    try:
        shape = list(np.shape(rates))
    except ValueError:
        raise ValueError(
            f"expected one rate for each client, got rates={rates!r} of several lengths"
        ) from None
    if len(shape) != 1 or not shape[0]:
        raise ValueError(
            f"expected one rate for each client, got rates of shape {shape}"
        )
    for width in rates:
        check_width(width)
    negative = -np.asarray(rates, np.float64)  # np.unique sorts upwards
    found, index = np.unique(negative, return_inverse=True)
    widths = tuple(float(-width) for width in found)
    return _Tiers(widths, index.astype(np.int32), None)


def _drawn_tiers(rates: Mapping[float, float]) -> _Tiers:
    """The widths that occur, and the share of each."""
    for width in rates:
        check_width(width)
    shares = [checks.real("share", share) for share in rates.values()]
    if not shares or min(shares) <= 0:
        raise ValueError(
            f"expected shares > 0 of at least one width, got {dict(rates)}"
        )
    widths = tuple(sorted(rates, reverse=True))
    shares = tuple(float(rates[width]) for width in widths)
    return _Tiers(widths, None, shares)
