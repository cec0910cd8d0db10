"""Mime: Mimicking Centralized Stochastic Algorithms in Federated Learning.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, 2020, arXiv 2008.03606, algorithm
1. An optimizer is a step U(g, s) and an update V(g, s) of its state s. Clients step with
the server's state, which stays as it is while they do:

    Mime:      clients send grad f_k(x), c = their mean         `_send_gradients`
               y <- y - U(g(y) - g(x) + c, s)                   `_train_corrected`
               server: x <- mean y, s <- V(c, s)
"""

from collections.abc import Callable

import jax

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer, gradient_of
from fedjax_fm.algorithms.mime_parts import (
    Message,
    Mime,
    MimeState,
    as_type,
    checked_mime,
    counts_unbilled,
    first_state,
    frozen_steps,
    gradient_at_start,
    served,
)
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.types import Algorithm, ClientOutput, Exchange, Task, Unbilled


def mime(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    server_learning_rate: float = 1.0,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Local steps of a central optimizer, with its state and a corrected gradient.

        y <- y - U(g(y) - g(x) + c, s),   c = sum_k p_k grad f_k(x)

    g(y) and g(x) are of the same batch. One step from x with a batch of all examples is
    a step of the optimizer on the cohort's loss.

    Sends: down x, then c and the optimizer's arrays; up grad f_k(x), then x - y: two
    trees up. x travels in the first exchange only; behind a lossy downlink the second
    one works from the server's x. Clients keep nothing; each local step takes two
    gradients, and a round one more pass.

    Args:
      task: the loss.
      client_optimizer: the central optimizer, whose state the server keeps; such as
        `optax.sgd(0.1, momentum=0.9)` or `optax.adam(1e-3)`.
      server_learning_rate: of x - mean y, > 0; 1 puts x at the mean.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `MimeState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Karimireddy et al. 2020, arXiv 2008.03606, algorithm 1, Mime. Clients count by
      their examples, as in google/fedjax.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return batch["h"] * (w - batch["x"]) ** 2 / 2, {}
      >>> how = {"local_steps": 5, "batch_size": 1}
      >>> method = mime(Task(loss), optax.sgd(0.2), **how)
      >>> clients = [{"h": jnp.array([h]), "x": jnp.array([h])} for h in (1.0, 3.0)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 40)
      >>> round(float(state.delta), 4)  # (1 * 1 + 3 * 3) / (1 + 3), the optimum
      2.5
    """
    method = checked_mime(
        task,
        client_optimizer,
        server_learning_rate,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )

    def after_training(state, aggregate, key):
        return served(method, state, aggregate, aggregate.value, state.gradient)

    train = Exchange(
        broadcast=_with_correction,
        client=_train_corrected(method),
        server=after_training,
        reduce=weighted_mean(),
        batches=method.local.batches,
    )
    return Algorithm(
        init=first_state(method), exchanges=(_send_gradients(method), train)
    )


def _send_gradients(method: Mime) -> Exchange:
    """Mime's first exchange: c."""

    def client(backbone, message):
        def one(start, state, data, key):
            gradient = gradient_at_start(method, start, backbone, data, key)
            weight = method.local.weight(data)
            return ClientOutput(upload=gradient, weight=weight, state=state)

        return one

    def server(state, aggregate, key):
        gradient = jax.tree.map(as_type, state.gradient, aggregate.value)
        return state._replace(gradient=gradient), {}

    whole = method.local.batches._replace(epochs=1, steps=None)
    return Exchange(
        broadcast=lambda state: state.delta,
        client=client,
        server=server,
        reduce=weighted_mean(),
        batches=whole,
    )


def _train_corrected(method: Mime) -> Callable:
    """Mime's second exchange: steps with g(y) - g(x) + c."""
    of_batch = gradient_of(method.local.task)

    def client(backbone, message):
        def one(message, state, data, key):
            start = message.delta

            def gradient(y, backbone, batch, mask, key):
                here, sums = of_batch(y, backbone, batch, mask, key)
                there, _ = of_batch(start, backbone, batch, mask, key)
                change = trees.subtract(here, there)
                return trees.add(change, message.gradient), sums

            given = (message, backbone, data, key)
            trained, metrics = frozen_steps(method, *given, gradient=gradient)
            return ClientOutput(
                upload=trees.subtract(start, trained),
                weight=method.local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    return client


def _with_correction(state: MimeState) -> Message:
    """Down in Mime's second exchange; x is there already."""
    return Message(
        delta=jax.tree.map(Unbilled, state.delta),
        optimizer=counts_unbilled(state.optimizer),
        gradient=state.gradient,
    )
