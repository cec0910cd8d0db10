"""HetLoRA: factors are averaged by the norm of their product, clients prune their rank.

Cho, Liu, Xu, Fahrezi, Joshi, 2024, "Heterogeneous LoRA for Federated Fine-tuning of
On-Device Foundation Models", arXiv 2401.06432.

    client:  minimises F_k + lambda ||B[:, gamma r_k:]|| ||A[gamma r_k:, :]|| on the
             first r_k rows of (A, B); if that tail ends smaller than it began,
             r_k <- gamma r_k before it sends
    server:  A <- sum_k w_k A_k,  B <- sum_k w_k B_k,   w_k in proportion to ||B_k A_k||_F
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    along_rows,
    as_arrays,
    cut_pairs,
    product_norm,
)
from fedjax_fm.algorithms.lora_rules.rule import (
    Rule,
    exchange_of,
    mean_or,
    starts_from,
)
from fedjax_fm.algorithms.lora_rules.training import (
    ClientFactors,
    FactorTraining,
    Ranks,
    factor_training,
)
from fedjax_fm.algorithms.parts import DeltaState
from fedjax_fm.algorithms.reduce import total, weighted_mean
from fedjax_fm.types import Algorithm, Batches, Task


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
    """Averages factors by ||B_k A_k||_F, layer by layer; clients prune their own rank.

    The other trained leaves are averaged by examples. Sends r_k (d_in + d_out) numbers
    a layer each way; the rank itself is the height of the message and not billed.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      ranks: i32[N], the rank of every client, at most that of the delta; None: all have
        the rank of the delta. Clients start from these.
      gamma: 0 < gamma <= 1, the share of its rows that a client keeps when it prunes, at
        least one row; 1 never prunes.
      tail_penalty: lambda >= 0, what a unit of the tail's norm costs; it is part of the
        reported loss. It has no default, as it depends on the loss and on the sizes of
        the factors. With 0 nothing drives tails towards zero and clients prune by the
        chance of their training: that is not HetLoRA, only its average.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `DeltaState`; the client state is its rank
      i32[], 0 before its first round.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or the ranks do not fit.

    References:
      Cho et al. 2024, arXiv 2401.06432, "rank self-pruning" and "sparsity-weighted
      aggregation".

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = hetlora(Task(loss), optax.sgd(0.1), gamma=0.5, tail_penalty=9.0, **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.ones((2, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> state.carry.clients.tolist()  # both pruned their tail, one row of two
      [1, 1]
    """
    checks.real("gamma", gamma, above=0, most=1)
    checks.real("tail_penalty", tail_penalty, least=0)
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)
    rule = Rule(sent="ab", reduce=total(_sums_by_norm), combine=_mean_by_norm)
    # A sweep's penalty is an array whose number is not known here.
    is_free = not isinstance(tail_penalty, jax.Array) and tail_penalty == 0

    def address(message, rank, client):
        rank = _current_rank(training, message.trained, rank, client)
        return ClientFactors(cut_pairs(message.trained, rank))

    def client(backbone, message):
        def one(mine, rank, data, key):
            rank = _current_rank(training, message.trained, rank, data.id)
            pruned = jnp.floor(gamma * rank).astype(jnp.int32)
            pruned = jnp.maximum(pruned, 1)

            def penalty(factors):
                return tail_penalty * tail_norm(factors, pruned)

            chosen = None if is_free else penalty
            done = training.run(mine, backbone, data, key, penalty=chosen)
            shrank = tail_norm(done.end, pruned) < tail_norm(done.start, pruned)
            rank = jnp.where(shrank, pruned, rank)
            upload = cut_pairs(as_arrays(done.change), rank)
            return done.output(upload, rank)

        return one

    exchange = exchange_of(rule, training)._replace(client=client, address=address)
    return Algorithm(
        init=starts_from(training, DeltaState),
        exchanges=(exchange,),
        client_init=lambda delta, key: jnp.int32(0),
    )


def _current_rank(
    training: FactorTraining, factors: Factors, rank: jax.Array, client: jax.Array
) -> jax.Array:
    """i32[]: the client's state, and its first rank where that is 0."""
    first = training.height(factors, client)
    return jnp.where(rank == 0, first, rank).astype(jnp.int32)


def tail_norm(factors: Factors, kept: jax.Array) -> jax.Array:
    """The sum over layers of ||a[kept:]|| ||b[kept:]||.

    Where a norm is zero its gradient is taken as zero.

    Args:
      factors: pairs [r, ...].
      kept: i32[], rows that are not of the tail.

    Returns:
      f32[].
    """

    def norm(x: jax.Array) -> jax.Array:
        is_tail = along_rows(jnp.arange(x.shape[0]) >= kept, x)
        tail = jnp.where(is_tail, x, 0)
        square = jnp.sum(tail**2, axis=(0, -1))  # [...], one a stacked layer
        root = jnp.sqrt(jnp.where(square > 0, square, 1.0))
        return jnp.where(square > 0, root, 0.0)

    pairs = factors.pairs.values()
    norms = [norm(pair.a) * norm(pair.b) for pair in pairs]
    by_layer = [jnp.sum(x) for x in norms]
    return jnp.sum(jnp.stack(by_layer))


class NormSums(NamedTuple):
    """Sums over a cohort."""

    pairs: dict[str, Pair]  # of ||B_k A_k|| times the factors
    norms: dict[str, jax.Array]  # of ||B_k A_k||, [...], one a stacked layer
    rest: tuple  # (of weight times leaf, of weight)


def _sums_by_norm(server, factors: Factors, weight: jax.Array) -> NormSums:
    """What one client adds; nothing where its weight is zero."""
    factors = as_arrays(factors)
    pairs, norms = {}, {}
    for layer, pair in factors.pairs.items():
        norms[layer] = jnp.where(weight > 0, product_norm(pair), 0.0)
        norm = norms[layer][..., None]
        pairs[layer] = Pair(norm * pair.a, norm * pair.b)
    rest = weighted_mean().lift(server, factors.rest, weight)
    return NormSums(pairs, norms, rest)


def _mean_by_norm(sums: NormSums, old: Factors) -> tuple[Factors, dict]:
    """The new factors; a layer whose products are all zero keeps its old ones."""
    pairs = {
        layer: mean_or(old.pairs[layer], pair, sums.norms[layer][..., None])
        for layer, pair in sums.pairs.items()
    }
    rest = mean_or(old.rest, *sums.rest)
    return dataclasses.replace(old, pairs=pairs, rest=rest), {}
