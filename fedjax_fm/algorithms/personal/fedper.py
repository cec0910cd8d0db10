"""FedPer: Federated Learning with Personalization Layers.

Arivazhagan, Aggarwal, Singh, Choudhary, 2019, arXiv 1912.00818.

    client:  (body_k, head_k) <- local steps from (body, its own head_k)
             sends body - body_k
    server:  body <- body - server_optimizer(sum_k p_k (body - body_k))
"""

import optax

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.personal.body import averages_body, keeps_heads
from fedjax_fm.algorithms.personal.leaves import personal_part, put
from fedjax_fm.peft.patterns import Targets
from fedjax_fm.types import Algorithm, ClientOutput, Task


def fedper(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    personal: Targets,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages the body; every client trains the personal leaves with it and keeps them.

    Sends: the leaves that are not personal, both ways. With the factors B of LoRA as
    personal leaves it is `lora_rules.fedsa_lora`.

    Args:
      task: the loss.
      client_optimizer: of all leaves, starts afresh each round.
      server_optimizer: of the body, as for `fedavg`; None means `optax.sgd(1.0)`.
      personal: names the leaves that stay: a regular expression that is searched in a
        leaf's dotted path ("head", r"lora_b$"), a list of endings of paths, or a
        function of the path. Layers that are stacked in one leaf stay or travel
        together.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`. A client's state is its own
      leaves, {path: leaf}; they begin where the server's are, and stay there for a
      client that has not taken part.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        `personal` names no leaf of the delta, or all.

    References:
      Arivazhagan et al. 2019, arXiv 1912.00818, algorithms 1 and 2.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     return (delta["body"] + delta["head"] - batch["x"]) ** 2 / 2, {}
      >>> how = {"personal": "head", "local_steps": 1, "batch_size": 1}
      >>> method = fedper(Task(loss), optax.sgd(0.5), **how)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> start = {"body": jnp.float32(0), "head": jnp.float32(0)}
      >>> state, metrics = simulator.run(simulator.init(start), 1)
      >>> models = [simulator.model(state, client=k)[0] for k in range(2)]
      >>> [(float(one["body"]), float(one["head"])) for one in models]
      [(1.5, 1.0), (1.5, 2.0)]
      >>> metrics["uplink_bytes"].tolist()  # one number of each client
      [8]
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
        def one(message, own, data, key):
            start = put(message.known, message.body | own)
            trained, metrics = local.run(start, backbone, data, key)
            return ClientOutput(
                upload=trees.subtract(message.body, part.shared(trained)),
                weight=local.weight(data),
                state=part.own(trained),
                metrics=metrics,
            )

        return one

    averaging = averages_body(part, server_optimizer, client, local.batches)
    return keeps_heads(averaging, part)
