"""FedSVD: B is trained and averaged beside a fixed A, then both are rotated by an SVD.

Lee, Park, Lee, Wagner, Seong, Bocklet, Lee, Hwang, 2025, "FedSVD: Adaptive
Orthogonalization for Private Federated Learning with LoRA", arXiv 2505.12805.

    client:  B_k <- local steps from B, A fixed
    server:  B <- sum_k p_k B_k;  every `period` rounds  B A = U S V^T,
             B <- U S,  A <- V^T

A is common to all clients, so the mean is exact; B A has at most rank r, so the SVD
loses nothing. With orthonormal rows of A, noise on B has the same energy in B A.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, linalg
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    cut,
    cut_pairs,
    join,
    only,
    split,
)
from fedjax_fm.algorithms.lora_rules.flexlora import signs_of
from fedjax_fm.algorithms.lora_rules.rule import (
    Rule,
    exchange_of,
    new_delta,
    remembering,
    this_round,
)
from fedjax_fm.algorithms.lora_rules.training import (
    ClientFactors,
    FactorTraining,
    Ranks,
    factor_training,
)
from fedjax_fm.types import Algorithm, Batches, Exchange, Task, Tree, Unbilled

RULE = Rule(sent="b", fixed="a")


class FedSVDState(NamedTuple):
    """Server state."""

    delta: Tree
    round: jax.Array  # i32[], rounds that are done
    since: jax.Array  # i32[], the first round that had this A; 0: the shared start


def fedsvd(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    period: int = 1,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Trains, sends and averages B; every few rounds an SVD makes A's rows orthonormal.

    Sends up r_k d_out numbers a layer; down B, and A where the client does not have the
    present one: r_k (d_in + d_out) numbers after every SVD, r_k d_out between them.
    Clients draw the first A from the shared seed. The other trained leaves travel both
    ways. With period 0 it is `ffa_lora`; else error feedback is refused, since an SVD
    turns the rows.

    A matrix with B = 0 keeps its A, for which the SVD of zero says nothing.

    Ranks that differ are not the paper's; rows that a client does not have count as
    zero in the mean, as in `fedit`. After an SVD a client's first rows are those of the
    largest singular values.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      period: rounds from one SVD to the next, the authors' is 1; 0: never.
      ranks: i32[N], the rank of every client, at most that of the delta; None: all have
        the rank of the delta.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedSVDState`; the client state is i32[], the
      last round in which the client took part, -1 before its first.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, the ranks do not fit, or a rank
        exceeds the inputs of a layer.

    References:
      Lee et al. 2025, arXiv 2505.12805; github.com/seanie12/fed-svd.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = fedsvd(Task(loss), optax.sgd(0.25), **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": 2 * jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> a, b = state.delta["layer"]["lora_a"], state.delta["layer"]["lora_b"]
      >>> round(float(jnp.linalg.norm(a)), 3), (a @ b).round(3)[0].tolist()
      (1.0, [2.0, 2.0])
    """
    checks.whole("period", period, least=0)
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)

    def first(delta: Tree) -> FedSVDState:
        _check_heights(split(delta))
        return FedSVDState(delta, jnp.int32(0), jnp.int32(0))

    exchange = _exchange(training, period)
    return remembering(training, first, exchange)


def _check_heights(factors: Factors) -> None:
    """Refuses more rows than can be orthonormal."""
    for layer, (a, _) in factors.pairs.items():
        rank, n_in = a.shape[0], a.shape[-1]
        if rank > n_in:
            raise ValueError(
                f"expected a rank of at most {n_in}, the inputs of {layer!r}, so that "
                f"the rows of A can be orthonormal, got rank {rank}"
            )


def _exchange(training: FactorTraining, period: int) -> Exchange:
    """FFA-LoRA's exchange, with an A that changes."""

    def broadcast(state):
        return split(state.delta), Unbilled(state.since)

    def address(message, last_round, client):
        factors, since = message
        fixed = only(factors, RULE.fixed).pairs
        is_known = (since == 0) | (last_round >= since)
        missing = cut(fixed, training.missing(factors, client, is_known))
        mine = cut_pairs(only(factors, RULE.sent), training.rows(client))
        return ClientFactors(mine, Unbilled(fixed), to_fetch=missing)

    def server(state, aggregate, key):
        delta, metrics = new_delta(RULE, training.layout, state.delta, aggregate.value)
        done = state.round + 1
        if period == 0:
            return FedSVDState(delta, done, state.since), metrics
        is_time = done % period == 0
        delta = jax.lax.cond(is_time, _rotated, lambda delta: delta, delta)
        since = jnp.where(is_time, done, state.since)
        return FedSVDState(delta, done, since), metrics

    exchange = exchange_of(RULE, training, this_round)
    return exchange._replace(
        broadcast=broadcast,
        address=address,
        server=server,
        same_entries=period == 0,  # an SVD turns the rows
    )


def _rotated(delta: Tree) -> Tree:
    """The delta with all its pairs orthonormal."""
    factors = split(delta)
    pairs = {layer: orthonormal(pair) for layer, pair in factors.pairs.items()}
    return join(Factors(pairs, factors.rest, factors.form))


def orthonormal(pair: Pair) -> Pair:
    """The pair of the same product whose a has orthonormal rows, by singular values.

    By QR of both factors and the SVD of a square of rank r; no [in, out] is formed. In
    every row of a the largest entry is positive.

    Args:
      pair: a [r, ..., in] with r <= in, b [r, ..., out].

    Returns:
      A pair of these shapes, b carrying the singular values; the pair itself in
      matrices where b is zero.
    """
    a, b = jnp.moveaxis(pair.a, 0, -1), jnp.moveaxis(pair.b, 0, -1)
    q_a, r_a = linalg.qr(a)
    _, r_b = linalg.qr(b)
    middle = r_a @ jnp.swapaxes(r_b, -1, -2)
    turn, _, _ = linalg.svd(middle, full_matrices=True)  # [..., r, r]
    turn = signs_of(q_a @ turn) * turn
    has_update = jnp.any(b != 0, axis=(-2, -1), keepdims=True)
    new_a = jnp.where(has_update, q_a @ turn, a)
    new_b = jnp.where(has_update, b @ jnp.swapaxes(r_a, -1, -2) @ turn, b)
    return Pair(new_a, new_b).map(lambda x: jnp.moveaxis(x, -1, 0))
