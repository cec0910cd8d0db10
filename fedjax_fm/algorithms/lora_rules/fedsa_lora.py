"""FedSA-LoRA: A is shared and averaged, every client keeps its own B.

Guo, Zeng, Wang, Fan, Wang, Qu, 2024, "Selective Aggregation for Low-Rank Adaptation in
Federated Learning", arXiv 2410.01463.

    client:  (A_k, B_k) <- local steps from (A, its own B_k);  sends A_k
    server:  A <- sum_k p_k A_k
"""

import jax

from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import PAIRS
from fedjax_fm.algorithms.lora_rules.rule import Rule, algorithm_of, personal_delta
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task, Tree

RULE = Rule(sent="a", personal="b")


def fedsa_lora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Shares A; every client keeps its own B.

    Sends r_k d_in numbers a layer each way, and the other trained leaves; nothing of B.
    The server's B stays at the start, where every client's own begins. The other leaves
    (a classifier) are averaged here; the authors' code for GLUE keeps them with the
    clients.

    Ranks that differ are not the paper's, which gives all clients one rank. Here rows
    of A beyond a client's rank count as zero in the mean, as in `fedit`, so that rows
    that few clients train shrink every round; a client's own B has its rank.

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
      An algorithm whose server state is `DeltaState`. The client state is its B,
      {layer: f32[r, ..., d_out]}, from its first round on zero beyond its rank; `model`
      and `fedsa_delta` give a client's own model.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or the ranks do not fit.

    References:
      Guo et al. 2024, arXiv 2410.01463, "Federated Share-A Low-Rank Adaptation".

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = fedsa_lora(Task(loss), optax.sgd(0.25), **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> state.delta["layer"]["lora_b"].tolist()  # the server has no client's B
      [[0.0, 0.0]]
      >>> delta, _ = simulator.model(state, 0)
      >>> delta["layer"]["lora_b"].tolist()
      [[0.5, 0.5]]
    """
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)
    return algorithm_of(RULE, training)


def fedsa_delta(delta: Tree, own: dict[str, jax.Array]) -> Tree:
    """The delta of one client: the server's A and its own B.

    Args:
      delta: of the server state.
      own: the client's state, {layer: f32[r, ..., d_out]}.

    Returns:
      A tree like `delta`.

    Example:
      >>> import jax.numpy as jnp
      >>> delta = {"layer": {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}}
      >>> fedsa_delta(delta, {"layer": jnp.array([[5.0, 6.0]])})["layer"]["lora_b"].tolist()
      [[5.0, 6.0]]
    """
    return personal_delta(RULE, PAIRS, delta, own)
