"""FedBABU: Toward Enhanced Representation for Federated Image Classification.

Oh, Kim, Yun, 2021, arXiv 2106.06042.

    client:  body_k <- local steps from the body, under the head of the start
             sends body - body_k
    server:  body <- body - server_optimizer(sum_k p_k (body - body_k))
    after the last round each client trains a head of its own: `fine_tune`
"""

import optax

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.personal.body import averages_body
from fedjax_fm.algorithms.personal.leaves import personal_part, put, train_leaves
from fedjax_fm.peft.patterns import Targets
from fedjax_fm.types import Algorithm, ClientOutput, Task


def fedbabu(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    personal: Targets,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages the body under a head that nobody trains until the end.

    Sends: the leaves that are not personal, both ways. The head stays where it began,
    the same for all clients, bit for bit. `fine_tune(task, optimizer,
    simulator.model(state), population, personal=...)` then trains the head of every
    client, without which the method is not finished.

    Args:
      task: the loss.
      client_optimizer: of the body, starts afresh each round.
      server_optimizer: of the body, as for `fedavg`; None means `optax.sgd(1.0)`.
      personal: names the leaves of the head: a regular expression that is searched in a
        leaf's dotted path, a list of endings of paths, or a function of the path.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        `personal` names no leaf of the delta, or all.

    References:
      Oh et al. 2021, arXiv 2106.06042, algorithm 1.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     return (delta["body"] + delta["head"] - batch["x"]) ** 2 / 2, {}
      >>> how = {"personal": "head", "local_steps": 1, "batch_size": 1}
      >>> method = fedbabu(Task(loss), optax.sgd(0.5), **how)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> start = {"body": jnp.float32(0), "head": jnp.float32(0.5)}
      >>> state, metrics = simulator.run(simulator.init(start), 1)
      >>> float(state.delta["body"]), float(state.delta["head"])
      (1.25, 0.5)
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    part = personal_part(personal)

    def client(backbone, message):
        def one(message, state, data, key):
            start = put(message.known, message.body)
            body, metrics = train_leaves(
                local, start, message.body, backbone, data=data, key=key
            )
            return ClientOutput(
                upload=trees.subtract(message.body, body),
                weight=local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    return averages_body(part, server_optimizer, client, local.batches)
