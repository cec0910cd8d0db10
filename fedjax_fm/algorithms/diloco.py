"""DiLoCo: Distributed Low-Communication Training of Language Models.

Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen, 2023, arXiv
2311.08105, algorithm 1.

    worker:  w_k <- H steps of an inner AdamW from w, whose moments stay with the worker
             sends w - w_k
    server:  w <- an outer Nesterov step with the mean of w - w_k
"""

import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, local_training, optimizer_of
from fedjax_fm.types import Algorithm, ClientOutput, Task


def diloco(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    keep_moments: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Few workers, many inner steps, a Nesterov step at the server.

    With `keep_moments=False` it is `fedavg` with that server step. Workers count by
    their examples, as in `fedavg`: the paper's plain mean where shards are equal.

    Sends: as `fedavg`; moments never travel. Memory: with `keep_moments`, the inner
    optimizer's state of every worker.

    Args:
      task: the loss.
      client_optimizer: the inner one, the paper's is `optax.adamw(4e-4)`.
      server_optimizer: the outer one, on the mean of w - w_k; None means
        `optax.sgd(0.7, momentum=0.9, nesterov=True)`.
      keep_moments: whether a worker's inner optimizer goes on where it was, or starts
        afresh each round.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches, H; 500 in the paper.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`; a client's state is that of its
      optimizer.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Douillard et al. 2023, arXiv 2311.08105, algorithm 1.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> method = diloco(task, optax.adamw(0.1), local_steps=10, batch_size=1)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 60)
      >>> round(float(state.delta), 1)
      3.0
    """
    checks.flag("keep_moments", keep_moments)
    checks.server_optimizer("server_optimizer", server_optimizer)
    outer = server_optimizer or optax.sgd(0.7, momentum=0.9, nesterov=True)
    plain = fedavg(
        task,
        client_optimizer,
        outer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    if not keep_moments:
        return plain
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    (exchange,) = plain.exchanges

    def client_init(delta, key):
        return optimizer_of(client_optimizer, jnp.int32(0)).init(delta)

    def client(backbone, message):
        def one(start, moments, data, key):
            (trained, moments), metrics = local.walk(
                (start, moments), backbone, data, key
            )
            return ClientOutput(
                upload=trees.subtract(start, trained),
                weight=local.weight(data),
                state=moments,
                metrics=metrics,
            )

        return one

    return plain._replace(
        exchanges=(exchange._replace(client=client),), client_init=client_init
    )
