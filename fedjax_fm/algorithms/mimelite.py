"""MimeLite: Mime without the corrected gradient.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, 2020, arXiv 2008.03606, algorithm
1. An optimizer is a step U(g, s) and an update V(g, s) of its state s:

    client:  y <- y - U(g(y), s) from x, s as it is;  sends x - y and grad f_k(x)
    server:  x <- mean y, s <- V(mean grad f_k(x), s)
"""

from collections.abc import Callable
from typing import NamedTuple

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.mime_parts import (
    Message,
    Mime,
    checked_mime,
    counts_unbilled,
    first_state,
    frozen_steps,
    gradient_at_start,
    served,
)
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.types import Algorithm, ClientOutput, Exchange, Task, Tree


class WithGradient(NamedTuple):
    """What a client of MimeLite sends."""

    change: Tree  # x - y
    gradient: Tree  # grad f_k(x)


def mimelite(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    server_learning_rate: float = 1.0,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Local steps of a central optimizer, with its state and without a correction.

        y <- y - U(g(y), s)

    Without momentum it is `fedavg`. Client drift remains, the optimizer's state is that
    of the cohort's gradients.

    Sends: down x and the optimizer's arrays; up x - y and grad f_k(x). Clients keep
    nothing and go once more over their data.

    Args:
      task: the loss.
      client_optimizer: the central optimizer, whose state the server keeps.
      server_learning_rate: of x - mean y, > 0; 1 puts x at the mean.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `MimeState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Karimireddy et al. 2020, arXiv 2008.03606, algorithm 1, MimeLite.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: (w * batch["x"], {}))
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = mimelite(task, optax.sgd(1.0, momentum=0.5), **how)
      >>> population = ffm.Population.from_clients([{"x": jnp.array([1.0])}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 2)
      >>> float(state.delta)  # -(1 + 1.5), as centrally
      -2.5
    """
    method = checked_mime(
        task,
        client_optimizer,
        server_learning_rate,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )

    def broadcast(state):
        return Message(state.delta, counts_unbilled(state.optimizer), ())

    def server(state, aggregate, key):
        change, gradient = aggregate.value
        return served(method, state, aggregate, change, gradient)

    exchange = Exchange(
        broadcast=broadcast,
        client=_train_uncorrected(method),
        server=server,
        reduce=weighted_mean(),
        batches=method.local.batches,
    )
    return Algorithm(init=first_state(method), exchanges=(exchange,))


def _train_uncorrected(method: Mime) -> Callable:
    """MimeLite's only exchange."""

    def client(backbone, message):
        def one(message, state, data, key):
            start = message.delta
            trained, metrics = frozen_steps(method, message, backbone, data, key)
            change = trees.subtract(start, trained)
            gradient = gradient_at_start(method, start, backbone, data, key)
            return ClientOutput(
                upload=WithGradient(change, gradient),
                weight=method.local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    return client
