"""FFA-LoRA: A stays at its shared random start, B alone is trained, sent and averaged.

Sun, Li, Li, Ding, 2024, "Improving LoRA in Privacy-preserving Federated Learning",
arXiv 2403.12313.

    client:  B_k <- local steps from the first r_k rows of B
    server:  B <- sum_k p_k B_k,   so that B A = sum_k p_k B_k A exactly
"""

from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.rule import Rule, algorithm_of
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task


def ffa_lora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Trains, sends and averages B; A never changes.

    Sends r_k d_out numbers a layer each way, and the other trained leaves; clients draw
    A from the shared seed. Noise added to B enters the update once and linearly.

    Ranks that differ are not the paper's; rows that a client does not have count as
    zero in the mean, as in `fedit`.

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
        the delta has no pairs of `lora_a` and `lora_b`, or the ranks do not fit.

    References:
      Sun et al. 2024, arXiv 2403.12313, "Federated Freeze A LoRA".

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = ffa_lora(Task(loss), optax.sgd(0.25), **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> state.delta["layer"]["lora_a"].tolist()
      [[1.0], [1.0], [1.0]]
      >>> metrics["uplink_bytes"].tolist()  # of two clients: B, two numbers of 4 bytes
      [16]
    """
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)
    return algorithm_of(Rule(sent="b", fixed="a"), training)
