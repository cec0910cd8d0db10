"""What the rules share.

A client's local training, its part of the message, and means of what comes back.

A client sends what it changed. The server adds that to the rows that the client started
from, which it knows, so a lossy channel acts on small numbers and masked rows stay
zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer, client_weight, train
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    cut_pairs,
    filled,
    join,
    like,
    plain,
    rank_of,
    returned,
    split,
)
from fedjax_fm.algorithms.reduce import stack
from fedjax_fm.types import (
    ClientData,
    ClientOutput,
    Reduce,
    Stack,
    Task,
    Tree,
    Unbilled,
)


class Mine(NamedTuple):
    """What a client works from.

    `trained` and `fixed` are billed unless they are `Unbilled`; `bought` is what is billed
    in their place where a client knows a part of them already.
    """

    trained: Any  # Factors, cut to its rank
    fixed: Any = ()  # {layer: Pair} of the factors that it does not train
    bought: Any = ()


class Trained(NamedTuple):
    """What local training leaves behind."""

    start: Factors  # plain arrays
    end: Factors
    change: Factors  # end - start, cut as the client's rank cuts
    weight: jax.Array  # f32[]
    metrics: dict[str, tuple[jax.Array, jax.Array]]


def train_factors(
    task: Task,
    optimizer: ClientOptimizer,
    mine: Mine,
    backbone: Tree,
    data: ClientData,
    key: jax.Array,
    penalty: Callable[[Factors], jax.Array] | None = None,
    join: Callable[[Factors], Tree] = join,
) -> Trained:
    """Local steps on `mine.trained`.

    Rows beyond the rank are cut in the forward pass, so their gradient is zero.

    Args:
      penalty: added to the loss, `f(factors) -> f32[]`.
      join: makes the delta that the task knows.
    """
    start = plain(mine.trained)

    def loss(trained, backbone, batch, key):
        whole = filled(plain(like(trained, mine.trained)), mine.fixed)
        losses, metrics = task.loss(join(whole), backbone, batch, key)
        return losses if penalty is None else losses + penalty(whole), metrics

    end, metrics = train(Task(loss, task.weight), optimizer, start, backbone, data, key)
    end = plain(like(end, mine.trained))
    change = like(trees.subtract(end, start), mine.trained)
    return Trained(
        start=start,
        end=end,
        change=change,
        weight=client_weight(task, data),
        metrics=metrics,
    )


def sends_change(task: Task, optimizer: ClientOptimizer) -> Callable:
    """The client that trains what it is sent and uploads what it changed."""

    def client(backbone, message):
        def one(mine, state, data, key):
            work = train_factors(task, optimizer, mine, backbone, data, key)
            return ClientOutput(
                upload=work.change,
                weight=work.weight,
                state=state,
                metrics=work.metrics,
            )

        return one

    return client


def by_rank(ranks: np.ndarray | None) -> Callable[[Mine, Any, jax.Array], Mine] | None:
    """An `address` that sends every client the rows of its rank.

    None, the whole message, where all have the same.
    """
    if ranks is None:
        return None

    def address(message: Mine, state: Any, client: jax.Array) -> Mine:
        return Mine(
            cut_pairs(message.trained, rank_of(ranks, client)),
            Unbilled(message.fixed),
            message.bought,
        )

    return address


def padded_mean(start: Callable[[Tree], Factors] = split) -> Reduce:
    """(sum_k p_k factors_k, sum of weights); rows beyond a client's rank count as zero.

    Args:
      start: what clients train, out of the server's delta.
    """

    def lift(server, sent, weight):
        factors = plain(returned(start(server.delta), sent))
        return jax.tree.map(lambda x: weight * x, factors), jnp.asarray(
            weight, jnp.float32
        )

    def finish(total, setting):
        factors, weight = total
        return jax.tree.map(
            lambda x: x / jnp.where(weight > 0, weight, 1.0), factors
        ), weight

    return Reduce(lift=lift, finish=finish)


class Kept(NamedTuple):
    """All factors of a cohort."""

    factors: (
        Factors  # leaves [C, r, ...], zero beyond each client's rank; rest [C, ...]
    )
    heights: dict[
        str, jax.Array
    ]  # by layer, i32[C], rows that are real; 0 of who did not come
    shares: jax.Array  # f32[C], p_k
    came: jax.Array  # bool[]: anybody


def kept(finish: Callable[[Kept], Any]) -> Reduce:
    """Keeps every client's factors: `finish(Kept)`."""
    inner = stack(lambda found, setting: finish(_kept(found)))

    def lift(server, sent, weight):
        return inner.lift(server, returned(split(server.delta), sent), weight)

    return inner._replace(lift=lift)


def _kept(found: Stack) -> Kept:
    (factors, weights), active = found.values, found.active
    weights = jnp.where(active, weights, 0.0)
    total = jnp.sum(weights)

    def height(rows: Any) -> jax.Array:
        count = (
            jnp.full(active.shape, rows.shape[1], jnp.int32)
            if hasattr(rows, "shape")
            else rows.count
        )
        return jnp.where(active, count, 0)

    heights = {layer: height(pair.a) for layer, pair in factors.pairs.items()}
    return Kept(
        factors=plain(factors),
        heights=heights,
        shares=weights / jnp.where(total > 0, total, 1.0),
        came=total > 0,
    )


def mean_over(shares: jax.Array, tree: Tree) -> Tree:
    """sum_k shares_k x_k over the leading axis."""
    return jax.tree.map(lambda x: jnp.tensordot(shares, x, axes=1), tree)


def stacked_rows(shares: jax.Array, pair: Pair) -> Pair:
    """[C, r, ...] -> [C r, ...], whose product is sum_k shares_k times the clients' products.

    Shares go on a.
    """
    weigh = shares.reshape(-1, *[1] * (pair.a.ndim - 1))
    return Pair(*(x.reshape(-1, *x.shape[2:]) for x in (weigh * pair.a, pair.b)))


def settled(came: jax.Array, new: Tree, old: Tree) -> Tree:
    """`new`, or `old` where nobody came."""
    return trees.select(came, new, old)


def never(delta: Tree, key: jax.Array) -> jax.Array:
    """i32[]: the last round of a client that never took part."""
    return jnp.int32(-1)
