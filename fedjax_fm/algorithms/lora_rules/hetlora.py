"""HetLoRA: Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models.

Cho, Liu, Xu, Fahrezi, Joshi, 2024, arXiv 2401.06432. Zero-padded factors are averaged
by the norm of their product, and clients prune their own rank.

    client:  minimises F_k + lambda ||B[:, gamma r_k:]|| ||A[gamma r_k:, :]|| on the
             first r_k rows of (A, B); if that tail ends smaller than it began:  r_k <-
             gamma r_k, before it sends
    server:  A <- sum_k w_k A_k,  B <- sum_k w_k B_k,   w_k in proportion to ||B_k A_k||_F
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    Ranks,
    check_fit,
    checked_ranks,
    cut_pairs,
    join,
    largest_rank,
    map_pairs,
    plain,
    product_norm,
    rank_of,
    returned,
    split,
)
from fedjax_fm.algorithms.lora_rules.work import Mine, train_factors
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientOutput,
    Exchange,
    Reduce,
    Task,
    Tree,
)


class HetLoRAState(NamedTuple):
    """Server state."""

    delta: Tree


def hetlora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    gamma: float = 0.99,
    tail_penalty: float,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages by ||B_k A_k||_F, layer by layer; the other trained leaves by examples.

    Args:
      ranks: at the start; None gives all clients the delta's.
      gamma: 0 < gamma <= 1, the share of its rows that a client keeps when it prunes,
        at least one row; 1 never prunes.
      tail_penalty: lambda, what a unit of the tail's norm costs; it is part of the
        reported loss. It has no default, as it depends on the loss and the factors'
        sizes. With 0 nothing drives tails towards zero and clients prune by the chance
        of their training: that is not HetLoRA, only its average.

    The client state is its rank i32[], 0 before its first round. Sends r_k (d_in +
    d_out) numbers a layer each way; the rank itself is the height of the message and
    not billed.
    """
    checks.real("gamma", gamma, above=0, most=1)
    checks.real("tail_penalty", tail_penalty, least=0)
    is_free = (
        not isinstance(tail_penalty, jax.Array) and tail_penalty == 0
    )  # a sweep's is an array without a number
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()
    ranks = checked_ranks(ranks)

    def init(delta, key, setting):
        check_fit(ranks, largest_rank(split(delta)), setting)
        return HetLoRAState(delta)

    def current_rank(factors: Factors, rank: jax.Array, client: jax.Array) -> jax.Array:
        first = rank_of(ranks, client)
        return jnp.where(
            rank == 0, largest_rank(factors) if first is None else first, rank
        ).astype(jnp.int32)

    def client(backbone, message):
        def one(mine, state, data, key):
            rank = current_rank(message.trained, state, data.id)
            kept = jnp.maximum(jnp.floor(gamma * rank), 1).astype(jnp.int32)

            def tail(factors):
                return tail_norm(factors, kept)

            penalty = None if is_free else lambda factors: tail_penalty * tail(factors)
            work = train_factors(
                task, client_optimizer, mine, backbone, data, key, penalty
            )
            rank = jnp.where(tail(work.end) < tail(work.start), kept, rank)
            return ClientOutput(
                upload=cut_pairs(plain(work.change), rank),
                weight=work.weight,
                state=rank,
                metrics=work.metrics,
            )

        return one

    def server(state, aggregate, key):
        return HetLoRAState(join(means(aggregate.value, split(state.delta)))), {}

    exchange = Exchange(
        broadcast=lambda state: Mine(split(state.delta)),
        client=client,
        server=server,
        reduce=by_norm(),
        batches=batches,
        address=lambda message, rank, client: message._replace(
            trained=cut_pairs(
                message.trained, current_rank(message.trained, rank, client)
            )
        ),
    )
    return Algorithm(
        init=init, exchanges=(exchange,), client_init=lambda delta, key: jnp.int32(0)
    )


def tail_norm(factors: Factors, kept: jax.Array) -> jax.Array:
    """f32[]: sum over layers of ||a[kept:]|| ||b[kept:]||.

    Where a norm is zero its gradient is taken as zero.
    """

    def norm(x: jax.Array) -> jax.Array:
        tail = (jnp.arange(x.shape[0]) >= kept).reshape(-1, *[1] * (x.ndim - 1))
        square = jnp.sum(
            jnp.where(tail, x, 0) ** 2, axis=(0, -1)
        )  # [...], one a stacked layer
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    norms = map_pairs(lambda pair: jnp.sum(norm(pair.a) * norm(pair.b)), factors)
    return jnp.sum(jnp.stack(list(norms.values())))


class NormSums(NamedTuple):
    """Sums over the cohort."""

    pairs: dict[str, Pair]  # of ||B_k A_k|| times the factors
    norms: dict[str, jax.Array]  # [...], of ||B_k A_k||, one a stacked layer
    rest: dict[str, jax.Array]  # of weight times leaf
    weight: jax.Array  # f32[]


def by_norm() -> Reduce:
    """Weighs every layer's factors by the norm of their product.

    Clients of weight zero count nothing.
    """

    def lift(server, sent, weight):
        factors = plain(returned(split(server.delta), sent))
        norms = map_pairs(
            lambda pair: jnp.where(weight > 0, product_norm(pair), 0.0), factors
        )
        pairs = {
            layer: Pair(*(norms[layer][..., None] * x for x in pair))
            for layer, pair in factors.pairs.items()
        }
        rest = jax.tree.map(lambda x: weight * x, factors.rest)
        return NormSums(
            pairs=pairs, norms=norms, rest=rest, weight=jnp.asarray(weight, jnp.float32)
        )

    return Reduce(lift=lift, finish=lambda total, setting: total)


def means(sums: NormSums, old: Factors) -> Factors:
    """The new factors; a layer whose products are all zero keeps its old ones."""

    def mean(x, weight, kept):
        return jnp.where(weight > 0, x / jnp.where(weight > 0, weight, 1.0), kept)

    def in_layer(layer):
        return lambda x, kept: mean(x, sums.norms[layer][..., None], kept)

    pairs = {
        layer: jax.tree.map(in_layer(layer), pair, old.pairs[layer])
        for layer, pair in sums.pairs.items()
    }
    return Factors(
        pairs,
        jax.tree.map(lambda x, kept: mean(x, sums.weight, kept), sums.rest, old.rest),
        old.form,
    )
