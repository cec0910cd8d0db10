"""A round in which every client holds a prefix of the model: what HeteroFL and FjORD share.

One exchange per width, widest first: only the clients of that width are computed in it,
on the statically sliced tree, so that a narrow client pays for what it holds, in time
and in bytes. The last exchange averages:

    w[e] <- w[e] - sum_k a_k (w - w_k)[e] / sum_k a_k,   k over the clients whose slice
    holds entry e

Entries that nobody held keep their value bit for bit. That is also FjORD's rule, to
overwrite the prefix of each width, from the widest to the narrowest, with the mean over
the clients that are at least as wide: the last to write an entry is the narrowest width
that holds it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.nested import Prefixes, check_width
from fedjax_fm.algorithms.parts import in_group
from fedjax_fm.algorithms.reduce import total
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientData,
    ClientOutput,
    Exchange,
    Tree,
    Unbilled,
)

# Of each client, constant [N], or {width: share}: each round every client draws one anew.
Rates = Sequence[float] | np.ndarray | Mapping[float, float]

# `local(width)(backbone, delta slice, data, key) -> (trained slice, metrics, weight f32[])`
Local = Callable[
    [float], Callable[[Tree, Tree, ClientData, jax.Array], tuple[Tree, dict, jax.Array]]
]


class ByWidthState(NamedTuple):
    """Server state; between rounds `sums` is empty."""

    delta: Tree
    tiers: jax.Array  # i32[N], which of the widths each client has in this round
    owned: (
        jax.Array | tuple
    )  # bool[N, K], the labels that each client has; () where they do not matter
    sums: tuple[
        tuple[Tree, jax.Array], ...
    ] = ()  # of the exchanges so far: (sum of a_k (w - w_k), sum of a_k)


class Message(NamedTuple):
    """What clients of one width are sent; only the slice is billed."""

    delta: Tree
    tiers: Any
    owned: Any


def by_width(
    local: Local,
    prefixes: Prefixes,
    rates: Rates,
    batches: Batches,
    labels: np.ndarray | None = None,
) -> Algorithm:
    """The method whose clients do `local`, each on the slice of its width.

    Args:
      prefixes: what a slice is.
      rates: the width of each client, or shares of widths.
      labels: bool[N, K], who has which label: entries of a "labels" axis are then
        averaged over those clients only that have the label, and every batch tells the
        loss `owned` bool[B, K].

    Sends: the slice, down and up; who has which width and label is known from the start.
    """
    widths, of_clients, shares = _tiers(rates)
    if labels is not None:
        labels = np.asarray(labels)
        if (
            labels.dtype != bool
            or labels.ndim != 2
            or labels.shape[1] != prefixes.n_labels()
        ):
            raise ValueError(
                f"expected labels of bool[clients, {prefixes.n_labels()}], as "
                "long as the axes of labels, got "
                f"{labels.dtype}{list(labels.shape)}"
            )

    def drawn(key: jax.Array, n_clients: int) -> jax.Array:
        return jax.random.categorical(
            key, jnp.log(jnp.array(shares)), shape=(n_clients,)
        ).astype(jnp.int32)

    def init(delta, key, setting):
        prefixes.check(delta)
        for name, array in (("rates", of_clients), ("labels", labels)):
            if array is not None and len(array) != setting.n_clients:
                raise ValueError(
                    f"{name} are those of {len(array)} clients, the population "
                    f"has {setting.n_clients}"
                )
        tiers = (
            drawn(key, setting.n_clients)
            if of_clients is None
            else jnp.asarray(of_clients)
        )
        return ByWidthState(
            delta=delta,
            tiers=tiers,
            owned=() if labels is None else jnp.asarray(labels),
        )

    def exchange(tier: int, width: float) -> Exchange:
        work = local(width)

        def client(backbone, message):
            def one(message: Message, state, data: ClientData, key):
                owned = None if labels is None else message.owned[data.id]
                data = (
                    data
                    if owned is None
                    else data._replace(batch=_with_owned(data.batch, owned))
                )
                trained, metrics, weight = work(backbone, message.delta, data, key)
                weight = (
                    weight
                    if owned is None
                    else weight * jnp.append(1.0, owned.astype(jnp.float32))
                )
                return ClientOutput(
                    upload=trees.subtract(message.delta, trained),
                    weight=weight,
                    state=state,
                    metrics=metrics,
                )

            return one

        def lift(server, sent, weight):
            return jax.tree.map(
                jnp.multiply, _of_entries(prefixes, sent, weight), sent
            ), weight

        def server(state: ByWidthState, aggregate, key):
            state = state._replace(sums=(*state.sums, aggregate.value))
            if tier + 1 < len(widths):
                return state, {}
            tiers = state.tiers if shares is None else drawn(key, state.tiers.shape[0])
            return ByWidthState(
                delta=averaged(prefixes, state.delta, state.sums),
                tiers=tiers,
                owned=state.owned,
            ), {}

        return Exchange(
            broadcast=lambda state: Message(
                prefixes.take(state.delta, width),
                Unbilled(state.tiers),
                Unbilled(state.owned),
            ),
            client=client,
            server=server,
            reduce=total(lift),
            batches=batches,
            selects=in_group(tier, lambda message: message.tiers),
        )

    return Algorithm(
        init=init, exchanges=tuple(exchange(i, width) for i, width in enumerate(widths))
    )


def averaged(
    prefixes: Prefixes, delta: Tree, sums: Sequence[tuple[Tree, jax.Array]]
) -> Tree:
    """Delta minus the mean of its updates, entry by entry over those who held the entry.

    Args:
      sums: of each width: (sum of a_k (w - w_k), a slice; sum of a_k: f32[], or f32[1 +
        K] with one more for each label).
    """

    def in_place(updates: Tree, weight: jax.Array) -> tuple[Tree, Tree]:
        held = jax.tree.map(
            lambda a, x: jnp.broadcast_to(a, x.shape),
            _of_entries(prefixes, updates, weight),
            updates,
        )
        return prefixes.pad(updates), prefixes.pad(held)

    total, weight = functools.reduce(trees.add, (in_place(*pair) for pair in sums))

    def one(w, total, weight):
        return jnp.where(
            weight > 0, w - total / jnp.where(weight > 0, weight, 1.0), w
        ).astype(w.dtype)

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
        return {
            **arrays,
            "owned": jnp.broadcast_to(owned, (mask.shape[0], owned.shape[0])),
        }, mask

    return wider


def widths_of(rates: Rates) -> tuple[float, ...]:
    """The widths that occur, widest first."""
    return _tiers(rates)[0]


def _tiers(
    rates: Rates,
) -> tuple[tuple[float, ...], np.ndarray | None, tuple[float, ...] | None]:
    """(widths, widest first; i32[N], which of them each client has; or the share of each)."""
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
    found, index = np.unique(-np.asarray(rates, np.float64), return_inverse=True)
    return tuple(float(-w) for w in found), index.astype(np.int32), None


def _drawn_tiers(
    rates: Mapping[float, float],
) -> tuple[tuple[float, ...], None, tuple[float, ...]]:
    """(widths, widest first; None; the share of each)."""
    for width, share in rates.items():
        check_width(width)
        if checks.real("share", share) <= 0:
            break
    else:
        if rates:
            widths = tuple(sorted(rates, reverse=True))
            return widths, None, tuple(float(rates[width]) for width in widths)
    raise ValueError(f"expected shares > 0 of at least one width, got {dict(rates)}")
