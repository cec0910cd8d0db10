"""FedIT: the factors A and B are averaged apart from each other.

Zhang, Vahidian, Kuo, Li, Zhang, Yu, Wang, Chen, 2023, "Towards Building the Federated
GPT: Federated Instruction Tuning" (Shepherd), arXiv 2305.05644. FedAvg on the factors.

    client:  (A_k, B_k) <- local steps from the first r_k ranks of (A, B)
    server:  A <- sum_k p_k A_k,  B <- sum_k p_k B_k

With A = lora_a^T and B = lora_b^T. The product B A differs from sum_k p_k B_k A_k by the covariance
sum_k p_k (B_k - B)(A_k - A).
"""

from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.rule import Rule, algorithm_of
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task


def fedit(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages A and B apart from each other, by examples or the task's weights.

    Sends r_k (d_in + d_out) numbers a layer each way, and the other trained leaves.
    With equal ranks it is `fedavg` without a server optimizer, up to rounding. Ranks that
    differ are not the paper's: smaller ones are padded with zeros, the baseline of the
    papers on HetLoRA and FLoRA, and alpha / r is one constant for all of them.

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
      Zhang et al. 2023, arXiv 2305.05644, "Federated Instruction Tuning".

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> method = fedit(Task(loss), optax.sgd(0.25), local_steps=1, batch_size=1)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> state.delta["layer"]["lora_b"].tolist()
      [[0.5, 0.5]]
    """
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)
    return algorithm_of(Rule(sent="ab"), training)
