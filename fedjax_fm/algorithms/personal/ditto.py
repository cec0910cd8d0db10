"""Ditto: Fair and Robust Federated Learning Through Personalization.

Li, Hu, Beirami, Smith, 2021, arXiv 2012.04221.

    client:  w_k <- local steps from w;  sends w - w_k                    FedAvg's
             v_k <- v_k - eta (grad f_k(v_k) + penalty (v_k - w))         keeps v_k
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k))
"""

from typing import Any

import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.personal.phases import (
    both,
    in_turn,
    named,
    own_model,
    second_training,
    starts_as_server,
    towards,
)
from fedjax_fm.types import Algorithm, Task


def ditto(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    penalty: float,
    personal_optimizer: ClientOptimizer | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    personal_epochs: int | None = None,
    personal_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg, and beside it each client trains a model of its own near the shared one.

    Sends: w down, w - w_k up, as `fedavg`; personal models never. What is shared goes
    exactly the way that it goes without them. Of a straggler's steps the shared model
    has the first.

    Args:
      task: the loss.
      client_optimizer: of the shared model, starts afresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      penalty: lambda, of penalty / 2 ||v_k - w||^2 with the w that was received; 0
        trains v_k as `local_only` does. The paper takes 0.05 to 2. Explicit steps of
        rate eta diverge beyond eta * penalty = 2.
      personal_optimizer: of the personal models; None means `client_optimizer`.
      epochs: full passes for the shared model in a round; give this or `local_steps`.
      local_steps: batches for the shared model.
      personal_epochs: full passes for the personal model, beside `epochs`; None: as
        many.
      personal_steps: batches for the personal model, beside `local_steps`; None: as
        many.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is FedAvg's. A client's state is v_k, as large as
      the delta, which begins where w does. `personal_loss` and so on are v_k's metrics,
      without the penalty.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Li et al. 2021, arXiv 2012.04221, algorithm 1.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> how = {"local_steps": 8, "batch_size": 1}
      >>> method = ditto(task, optax.sgd(0.5), penalty=1.0, **how)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 9)
      >>> round(float(state.delta), 2)
      3.0
      >>> [round(float(simulator.model(state, client=k)[0]), 2) for k in range(2)]
      [2.5, 3.5]
    """
    checks.real("penalty", penalty, least=0)
    walk: dict[str, Any] = {
        "epochs": epochs,
        "local_steps": local_steps,
        "batch_size": batch_size,
    }
    local = local_training(task, client_optimizer, **walk)
    personal = second_training(
        local, personal_optimizer, epochs=personal_epochs, steps=personal_steps
    )
    plain = fedavg(task, client_optimizer, server_optimizer, **walk)
    (exchange,) = plain.exchanges

    def client(backbone, message):
        shared_client = exchange.client(backbone, message)

        def one(received, own, data, key):
            first, second = in_turn(local.batches, data)
            output = shared_client(received, (), first, key)
            own, metrics = personal.run(
                own,
                backbone,
                second,
                stream(key, Stream.BESIDE_STEPS),
                correct=towards(received, penalty),
            )
            metrics = {**output.metrics, **named(metrics)}
            return output._replace(state=own, metrics=metrics)

        return one

    batches = both(local.batches, personal.batches)
    return plain._replace(
        exchanges=(exchange._replace(client=client, batches=batches),),
        client_init=starts_as_server,
        model=own_model,
    )
