"""FedEx-LoRA: factors are averaged, what the average misses goes to the frozen layer.

Singhal, Ponkshe, Vepakomma, 2024, "Exact Aggregation for Federated and Efficient
Fine-Tuning of Foundation Models", arXiv 2410.09432.

    client:  (A_k, B_k) <- local steps from (A, B), beside W
    server:  A <- sum_k p_k A_k,  B <- sum_k p_k B_k,
             W <- W + s (sum_k p_k B_k A_k - B A) = W + s sum_k p_k (B_k - B)(A_k - A)
"""

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.cohort import (
    CohortFactors,
    joined_rows,
    products_of_cohort,
)
from fedjax_fm.algorithms.lora_rules.factors import Pair, along_rows
from fedjax_fm.algorithms.lora_rules.residual import (
    check_arguments,
    is_below_dense,
    residual_rule,
    stack_height,
)
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task


def fedex_lora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    scaling: float,
    ranks: Ranks = None,
    most_clients: int | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages the factors and puts the residual into the frozen kernels.

    The effective weights after a round are the mean of the clients', weighted by
    examples (the authors' code: uniform). With ranks that differ, which are not the
    paper's, this holds for the delta's full rank; a client of smaller rank starts from
    its first rows.

    Sends r_k (d_in + d_out) numbers a layer each way, and down the residual: with R =
    sum_k r_k, and one more for each row that some client lacks, min(R (d_in + d_out),
    d_in d_out) numbers; the shape decides which. See `residual.py` for clients that
    missed a round.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      scaling: s = alpha / r of the LoRA layers; the algorithm sees trees, which do not
        hold it.
      ranks: i32[N], the rank of every client, at most that of the delta; None: all have
        the rank of the delta.
      most_clients: the most clients of a round; None: the cohort size. A larger cohort
        stops the run.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `ResidualState`; the client state is i32[], the
      last round in which the client took part, -1 before its first. `model` adds the
      residual to the kernels.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or those of DoRA, or the ranks do
        not fit.

    References:
      Singhal et al. 2024, arXiv 2410.09432.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     kernel = backbone["layer"]["base"]["kernel"] + update
      ...     return jnp.sum((batch["x"] @ kernel - 1) ** 2, axis=-1), {}
      >>> backbone = {"layer": {"base": {"kernel": jnp.zeros((3, 2))}}}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = fedex_lora(Task(loss), optax.sgd(0.25), scaling=1.0, **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, backbone=backbone, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> delta, seen = simulator.model(state)
      >>> seen["layer"]["base"]["kernel"].shape  # the frozen kernel and the residual
      (3, 2)
    """
    check_arguments(scaling, most_clients)
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)

    def height(pair, n_clients):
        rank = pair.a.shape[0]
        smallest = rank if training.ranks is None else int(training.ranks.min())
        lacking = max(rank - smallest, 0)  # rows that some client does not have
        rows = stack_height(training.ranks, pair, n_clients) + lacking
        return rows if is_below_dense(pair, rows) else None

    def combine(cohort, old, key):
        mean = cohort.mean(cohort.factors)
        added = {
            layer: _deviations(cohort, pair, layer, scaling)
            for layer, pair in mean.pairs.items()
        }
        return trees.select(cohort.arrived, mean, old), added

    return residual_rule(
        training,
        combine,
        height,
        most_clients=most_clients,
        reduce=products_of_cohort(),
    )


def _deviations(
    cohort: CohortFactors, mean: Pair, layer: str, scaling: float
) -> tuple[Pair, jax.Array]:
    """(rows whose product is the residual of a layer, bool[rows]: which are real).

    They are s p_k (a_k - a) beside b_k - b for the rows that client k has, and then s q
    a beside b for each row that clients of shares q in all do not have.
    """
    pair, shares = cohort.factors.pairs[layer], cohort.shares
    has_row = cohort.has_row(layer)
    lacking = jnp.sum(jnp.where(has_row, 0.0, shares[:, None]), axis=0)  # [r]

    def centred(x: jax.Array, mean: jax.Array) -> jax.Array:
        return jnp.where(along_rows(has_row, x), x - mean, 0)

    def both(of_clients: jax.Array, of_lacking: jax.Array) -> jax.Array:
        return jnp.concatenate([joined_rows(of_clients), of_lacking])

    of_clients = scaling * along_rows(shares, pair.a) * centred(pair.a, mean.a)
    of_lacking = scaling * along_rows(lacking, mean.a) * mean.a
    a = both(of_clients, of_lacking)
    b = both(centred(pair.b, mean.b), mean.b)
    return Pair(a, b), both(has_row, lacking > 0)
