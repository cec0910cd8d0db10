"""FedBABU: Toward Enhanced Representation for Federated Image Classification.

Oh, Kim, Yun, 2021, arXiv 2106.06042.

    client:  body_k <- local steps from the body, under the head of the start
             sends body - body_k
    server:  body <- body - server_optimizer(sum_k p_k (body - body_k))
    a head of a client's own: local steps from that of the start, at the body; for all
    clients after the last round (`fine_tune`), or in every round at the received body
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


def fedbabu(
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
    """Averages the body under a head that nobody trains until the end.

    Sends: the leaves that are not personal, both ways. The head under which the body is
    trained stays where it began, the same for all clients, bit for bit.
    `fine_tune(task, optimizer, simulator.model(state), population, personal=...)` then
    trains the head of every client. With `personal_steps` clients also do so in every
    round, at the body that they received, and keep that head for `simulator.model`; the
    body does not see it.

    Args:
      task: the loss.
      client_optimizer: of the body, starts afresh each round.
      server_optimizer: of the body, as for `fedavg`; None means `optax.sgd(1.0)`.
      personal: names the leaves of the head: a regular expression that is searched in a
        leaf's dotted path, a list of endings of paths, or a function of the path.
      personal_optimizer: of the heads that clients keep; None means `client_optimizer`.
      epochs: full passes for the body in a round; give this or `local_steps`.
      local_steps: batches for the body.
      personal_epochs: full passes for a head to keep, beside `epochs`; None: none.
      personal_steps: batches for a head to keep, beside `local_steps`; None: none.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`. Clients keep nothing, or their
      head {path: leaf}, with `personal_loss` and so on as its metrics.

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
    keeps = personal_epochs is not None or personal_steps is not None
    if personal_optimizer is not None and not keeps:
        raise ValueError(
            "expected personal_epochs or personal_steps beside personal_optimizer, "
            "got neither: no client would train a head with it"
        )
    of_head = second_training(
        local, personal_optimizer, epochs=personal_epochs, steps=personal_steps
    )

    def client(backbone, message):
        def one(message, state, data, key):
            first, second = in_turn(local.batches, data)
            start = put(message.known, message.body)
            body, metrics = train_leaves(
                local, start, message.body, backbone, data=first, key=key
            )
            if keeps:
                head = part.own(start)
                head_key = stream(key, Stream.BESIDE_STEPS)
                head, of_own = train_leaves(
                    of_head, start, head, backbone, data=second, key=head_key
                )
                state = trees.select(second.n_steps > 0, head, state)
                metrics = {**metrics, **named(of_own)}
            return ClientOutput(
                upload=trees.subtract(message.body, body),
                weight=local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    if not keeps:
        return averages_body(part, server_optimizer, client, local.batches)
    batches = both(local.batches, of_head.batches)
    return keeps_heads(averages_body(part, server_optimizer, client, batches), part)
