"""FLoRA: factors are stacked and merged into the frozen layer, clients start anew.

Wang, Shen, He, Sun, Wang, Lyu, Li, 2024, "Federated Fine-Tuning Large Language Models
with Heterogeneous Low-Rank Adaptations", arXiv 2409.05976.

    client:  (A_k, B_k) <- local steps from a fresh start of rank r_k, beside W
    server:  A = [p_1 A_1; ...; p_m A_m],  B = [B_1, ..., B_m],   W <- W + s B A

The product B A is sum_k p_k B_k A_k exactly.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.cohort import (
    joined_rows,
    products_of_cohort,
    stacked,
)
from fedjax_fm.algorithms.lora_rules.factors import Factors, Pair
from fedjax_fm.algorithms.lora_rules.residual import (
    check_arguments,
    residual_rule,
    stack_height,
)
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task


def flora(
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
    """Stacks the factors and merges the stack into the frozen kernels.

    The effective weights after a round are the mean of the clients', whatever their
    ranks. Every round starts from A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)) of a seed that
    clients know, and B = 0; the first from the delta given.

    Sends up r_k (d_in + d_out) numbers a layer, down sum_k r_k (d_in + d_out) of the
    last round's clients, which grows with the cohort; the other trained leaves are
    averaged and travel both ways. See `residual.py` for clients that missed a round.

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
      An algorithm whose server state is `ResidualState`; the factors of its delta are
      the next fresh start, the residual is what was learnt, and `model` adds it to the
      kernels. The client state is i32[], the last round in which the client took part,
      -1 before its first.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or those of DoRA, or the ranks do
        not fit.

    References:
      Wang et al. 2024, arXiv 2409.05976, "stacking-based aggregation".

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     kernel = backbone["layer"]["base"]["kernel"] + update
      ...     return jnp.sum((batch["x"] @ kernel - 1) ** 2, axis=-1), {}
      >>> backbone = {"layer": {"base": {"kernel": jnp.zeros((3, 2))}}}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = flora(Task(loss), optax.sgd(0.25), scaling=1.0, **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, backbone=backbone, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> state.delta["layer"]["lora_b"].tolist()  # a fresh start
      [[0.0, 0.0]]
      >>> _, seen = simulator.model(state)  # mean over clients of A_k B_k
      >>> seen["layer"]["base"]["kernel"].tolist()
      [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    check_arguments(scaling, most_clients)
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)

    def height(pair, n_clients):
        return stack_height(training.ranks, pair, n_clients)

    def combine(cohort, old, key):
        added = {}
        for layer, pair in cohort.factors.pairs.items():
            rows = stacked(scaling * cohort.shares, pair)
            added[layer] = rows, joined_rows(cohort.has_row(layer))
        mean = cohort.mean(cohort.factors.rest)
        rest = trees.select(cohort.arrived, mean, old.rest)
        return dataclasses.replace(fresh(old, key), rest=rest), added

    return residual_rule(
        training,
        combine,
        height,
        most_clients=most_clients,
        starts_anew=True,
        reduce=products_of_cohort(),
    )


def fresh(factors: Factors, key: jax.Array) -> Factors:
    """A fresh start: A drawn as PEFT draws it, B = 0.

    Args:
      factors: of these shapes.
      key: of the draw; layer i uses `fold_in(key, i)`.

    Returns:
      Factors with the same rest.
    """
    pairs = {}
    for number, (layer, (a, b)) in enumerate(factors.pairs.items()):
        bound, own = a.shape[-1] ** -0.5, jax.random.fold_in(key, number)
        draw = jax.random.uniform(own, a.shape, a.dtype, minval=-bound, maxval=bound)
        pairs[layer] = Pair(draw, jnp.zeros_like(b))
    return dataclasses.replace(factors, pairs=pairs)
