"""FlexLoRA: the whole update is averaged, and cut into ranks by its SVD.

Bai, Chen, Qian, Yao, Li, 2024, "Federated Fine-tuning of Large Language Models under
Heterogeneous Tasks and Client Resources", arXiv 2402.11505.

    client:  (A_k, B_k) <- local steps from rank r_k of (A, B)
    server:  sum_k p_k B_k A_k = U S V^T;   B <- U S,  A <- V^T

Client k is sent the first r_k singular values.
"""

import jax
import jax.numpy as jnp

from fedjax_fm import linalg, trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.cohort import (
    CohortFactors,
    products_of_cohort,
    stacked,
)
from fedjax_fm.algorithms.lora_rules.factors import Factors, Pair, refuse_magnitudes
from fedjax_fm.algorithms.lora_rules.rule import Rule, algorithm_of
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task


def flexlora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages the products B_k A_k and redistributes them by truncated SVD.

    A delta whose rank reaches that of the mean loses nothing. Otherwise the Frobenius
    error is that of the singular values that are cut off; the metric `truncation_error`
    reports it over all layers, at the rank of the delta. The server keeps the factors
    of the whole cohort. Sends r_k (d_in + d_out) numbers a layer each way, and the
    other trained leaves. Error feedback is refused, since the SVD turns the rows.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      ranks: i32[N], the rank of every client, at most that of the delta; None: all have
        the rank of the delta.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `DeltaState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or those of DoRA, or the ranks
        do not fit.

    References:
      Bai et al. 2024, arXiv 2402.11505.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = flexlora(Task(loss), optax.sgd(0.25), ranks=[1, 2], **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.zeros((2, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> metrics["truncation_error"].round(3).tolist()  # two ranks hold a 3 x 2 update
      [0.0]
    """
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)
    rule = Rule(sent="ab", reduce=products_of_cohort(), combine=_best_of_rank)
    averaged = algorithm_of(rule, training)
    (exchange,) = averaged.exchanges
    exchange = exchange._replace(same_entries=False)  # the SVD turns the rows

    def init(delta, key, setting):
        refuse_magnitudes(delta)
        return averaged.init(delta, key, setting)

    return averaged._replace(init=init, exchanges=(exchange,))


def _best_of_rank(cohort: CohortFactors, old: Factors) -> tuple[Factors, dict]:
    """The closest pairs of the old pairs' ranks to the means of the products."""
    pairs, errors = {}, []
    for layer, pair in cohort.factors.pairs.items():
        mean = stacked(cohort.shares, pair)
        pairs[layer], cut_off = truncated_svd(mean, rank=pair.a.shape[1])
        errors.append(jnp.sum(cut_off**2))
    new = Factors(pairs, cohort.mean(cohort.factors.rest), old.form)
    squared_error = jnp.sum(jnp.stack(errors))
    metrics = {"truncation_error": jnp.sqrt(squared_error)}
    return trees.select(cohort.arrived, new, old), metrics


def truncated_svd(pair: Pair, rank: int) -> tuple[Pair, jax.Array]:
    """The best pair of a rank for the product of a pair with more rows.

    The new a has orthonormal rows, b carries the singular values. With fewer rows than
    either side, by QR of both factors: O((in + out) rows^2), and no [in, out] is formed.
    Signs are fixed: in every a_i the largest entry is positive.

    Args:
      pair: a [rows, ..., in], b [rows, ..., out].
      rank: rows that are kept.

    Returns:
      (a [rank, ..., in] and b [rank, ..., out], the singular values that are cut off).
    """
    left, s, right = _svd_of_product(pair, rank)
    sign = signs_of(left)
    a = jnp.moveaxis(sign * left, -1, 0)
    carried = jnp.swapaxes(sign * s[..., None, :rank], -1, -2) * right
    b = jnp.moveaxis(carried, -2, 0)
    return Pair(a, b), s[..., rank:]


def signs_of(columns: jax.Array) -> jax.Array:
    """Signs that make the largest entry of every column positive.

    Args:
      columns: [..., n, rank], such as singular vectors, whose signs say nothing.

    Returns:
      1 or -1, [..., 1, rank].
    """
    place = jnp.argmax(jnp.abs(columns), axis=-2, keepdims=True)
    largest = jnp.take_along_axis(columns, place, axis=-2)
    return jnp.where(largest < 0, -1.0, 1.0)


def _svd_of_product(pair: Pair, rank: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U [..., in, rank], all singular values, V^T [..., rank, out]."""
    n_rows, n_in, n_out = pair.a.shape[0], pair.a.shape[-1], pair.b.shape[-1]
    a, b = jnp.moveaxis(pair.a, 0, -1), jnp.moveaxis(pair.b, 0, -1)
    if n_rows >= min(n_in, n_out):
        whole = a @ jnp.swapaxes(b, -1, -2)
        u, s, vt = linalg.svd(whole)
        return u[..., :rank], s, vt[..., :rank, :]
    q_a, r_a = linalg.qr(a)
    q_b, r_b = linalg.qr(b)
    middle = r_a @ jnp.swapaxes(r_b, -1, -2)  # [..., rows, rows]
    u, s, vt = linalg.svd(middle)
    return q_a @ u[..., :rank], s, vt[..., :rank, :] @ jnp.swapaxes(q_b, -1, -2)
