"""FedRep: Exploiting Shared Representations for Personalized Federated Learning.

Collins, Hassani, Mokhtari, Shakkottai, 2021, arXiv 2102.07078.

    client:  head_k <- local steps from its own head_k, at the received body
             body_k <- local steps from the body, at the new head_k
             sends body - body_k
    server:  body <- body - server_optimizer(sum_k p_k (body - body_k))
"""

import optax

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.personal.body import averages_body, keeps_heads
from fedjax_fm.algorithms.personal.leaves import personal_part, put, train_leaves
from fedjax_fm.algorithms.personal.phases import both, in_turn, named, second_training
from fedjax_fm.peft.patterns import Targets
from fedjax_fm.types import Algorithm, ClientOutput, Task


def fedrep(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    personal: Targets,
    personal_optimizer: ClientOptimizer | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    personal_epochs: int | None = None,
    personal_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Clients train their own head at the received body, then the body at that head.

    Sends: the leaves that are not personal, both ways. In either training the other
    leaves stay as they are, bit for bit. Of a straggler's steps the head has the first.

    Args:
      task: the loss.
      client_optimizer: of the body, starts afresh each round.
      server_optimizer: of the body, as for `fedavg`; None means `optax.sgd(1.0)`.
      personal: names the leaves of the head: a regular expression that is searched in a
        leaf's dotted path, a list of endings of paths, or a function of the path.
      personal_optimizer: of the head; None means `client_optimizer`.
      epochs: full passes for the body in a round; give this or `local_steps`.
      local_steps: batches for the body.
      personal_epochs: full passes for the head, beside `epochs`; None: as many.
      personal_steps: batches for the head, beside `local_steps`; None: as many.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`. A client's state is its head,
      {path: leaf}; it begins where the server's is. Its metrics are those of the body's
      training, `personal_loss` and so on those of the head's.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        `personal` names no leaf of the delta, or all.

    References:
      Collins et al. 2021, arXiv 2102.07078, algorithm 1.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     return (delta["body"] + delta["head"] - batch["x"]) ** 2 / 2, {}
      >>> how = {"personal": "head", "local_steps": 1, "batch_size": 1}
      >>> method = fedrep(Task(loss), optax.sgd(0.5), **how)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> start = {"body": jnp.float32(0), "head": jnp.float32(0)}
      >>> state, metrics = simulator.run(simulator.init(start), 1)
      >>> models = [simulator.model(state, client=k)[0] for k in range(2)]
      >>> [(float(one["body"]), float(one["head"])) for one in models]
      [(0.75, 1.0), (0.75, 2.0)]
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    part = personal_part(personal)
    of_head = second_training(
        local, personal_optimizer, epochs=personal_epochs, steps=personal_steps
    )

    def client(backbone, message):
        def one(message, own, data, key):
            first, second = in_turn(of_head.batches, data)
            start = put(message.known, message.body)
            own, metrics = train_leaves(
                of_head,
                start,
                own,
                backbone,
                data=first,
                key=stream(key, Stream.BESIDE_STEPS),
            )
            with_head = put(start, own)
            body, of_body = train_leaves(
                local, with_head, message.body, backbone, data=second, key=key
            )
            return ClientOutput(
                upload=trees.subtract(message.body, body),
                weight=local.weight(data),
                state=own,
                metrics={**named(metrics), **of_body},
            )

        return one

    batches = both(of_head.batches, local.batches)
    averaging = averages_body(part, server_optimizer, client, batches)
    return keeps_heads(averaging, part)
