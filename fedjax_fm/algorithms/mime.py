"""Mime: Mimicking Centralized Stochastic Algorithms in Federated Learning.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, 2020, arXiv 2008.03606, algorithm
1. An optimizer is a step U(g, s) and an update V(g, s) of its state s. Clients step with
the server's state, which stays as it is while they do:

    Mime:      clients send grad f_k(x), c = their mean         `_send_gradients`
               y <- y - U(g(y) - g(x) + c, s)                   `_train_corrected`
               server: x <- mean y, s <- V(c, s)
    MimeLite:  y <- y - U(g(y), s), and clients send grad f_k(x) beside y
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    LocalTraining,
    gradient_of,
    local_training,
    optimizer_of,
)
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.passes import gradient_over, passes_over
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.types import Algorithm, ClientOutput, Exchange, Task, Tree, Unbilled

__all__ = ["mime", "mimelite"]


class MimeState(NamedTuple):
    """Server state."""

    delta: Tree  # x
    optimizer: Any  # s
    gradient: Tree  # c of the round; of Mime between its two exchanges
    round: jax.Array  # i32[]


class Message(NamedTuple):
    """What a client is sent to train with."""

    delta: Tree
    optimizer: Any  # its whole numbers, of updates, are not billed
    gradient: Tree  # c; () of MimeLite


class WithGradient(NamedTuple):
    """What a client of MimeLite sends."""

    change: Tree  # x - y
    gradient: Tree  # grad f_k(x)


class _Mime(NamedTuple):
    """The hyper-parameters of both, checked."""

    local: LocalTraining
    rate: float

    def optimizer(self, round_index: jax.Array) -> optax.GradientTransformation:
        """U and V in this round."""
        return optimizer_of(self.local.optimizer, round_index)


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
    method = _checked(
        task,
        client_optimizer,
        server_learning_rate,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )

    def after_training(state, aggregate, key):
        return _served(method, state, aggregate, aggregate.value, state.gradient)

    train = Exchange(
        broadcast=_with_correction,
        client=_train_corrected(method),
        server=after_training,
        reduce=weighted_mean(),
        batches=method.local.batches,
    )
    return Algorithm(init=_init(method), exchanges=(_send_gradients(method), train))


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
    method = _checked(
        task,
        client_optimizer,
        server_learning_rate,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )

    def broadcast(state):
        return Message(state.delta, _counts_unbilled(state.optimizer), ())

    def server(state, aggregate, key):
        change, gradient = aggregate.value
        return _served(method, state, aggregate, change, gradient)

    exchange = Exchange(
        broadcast=broadcast,
        client=_train_uncorrected(method),
        server=server,
        reduce=weighted_mean(),
        batches=method.local.batches,
    )
    return Algorithm(init=_init(method), exchanges=(exchange,))


def _checked(task, client_optimizer, rate: float, **walk: Any) -> _Mime:
    checks.real("server_learning_rate", rate, above=0)
    return _Mime(local_training(task, client_optimizer, **walk), rate)


def _init(method: _Mime) -> Callable[..., MimeState]:
    def init(delta, key, setting):
        first = jnp.int32(0)
        return MimeState(
            delta=delta,
            optimizer=method.optimizer(first).init(delta),
            gradient=jax.tree.map(jnp.zeros_like, delta),
            round=first,
        )

    return init


# Clients


def _gradient_at_start(method: _Mime, start, backbone, data, key) -> Tree:
    """The gradient of all of a client's examples at x."""
    key = stream(key, Stream.WHOLE_PASS)
    given = (start, backbone, data, key)
    return gradient_over(method.local.task, *given, n_batches=passes_over(data))[0]


def _send_gradients(method: _Mime) -> Exchange:
    """Mime's first exchange: c."""

    def client(backbone, message):
        def one(start, state, data, key):
            gradient = _gradient_at_start(method, start, backbone, data, key)
            return ClientOutput(gradient, method.local.weight(data), state)

        return one

    def server(state, aggregate, key):
        gradient = jax.tree.map(_as, state.gradient, aggregate.value)
        return state._replace(gradient=gradient), {}

    whole = method.local.batches._replace(epochs=1, steps=None)
    return Exchange(
        broadcast=lambda state: state.delta,
        client=client,
        server=server,
        reduce=weighted_mean(),
        batches=whole,
    )


def _train_corrected(method: _Mime) -> Callable:
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
            trained, metrics = _steps(method, *given, gradient=gradient)
            return ClientOutput(
                upload=trees.subtract(start, trained),
                weight=method.local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    return client


def _train_uncorrected(method: _Mime) -> Callable:
    """MimeLite's only exchange."""

    def client(backbone, message):
        def one(message, state, data, key):
            start = message.delta
            trained, metrics = _steps(method, message, backbone, data, key)
            change = trees.subtract(start, trained)
            gradient = _gradient_at_start(method, start, backbone, data, key)
            return ClientOutput(
                upload=WithGradient(change, gradient),
                weight=method.local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    return client


def _steps(method: _Mime, message: Message, backbone, data, key, **changes: Any):
    """Local steps U with the server's s, which they leave as it is."""

    def frozen(optimizer):
        def update(gradients, state, params=None):
            steps, _ = optimizer.update(gradients, message.optimizer, params)
            return steps, state

        return optax.GradientTransformation(lambda params: (), update)

    local = method.local.with_optimizer(frozen)
    return local.run(message.delta, backbone, data, key, **changes)


# The server


def _with_correction(state: MimeState) -> Message:
    """Down in Mime's second exchange; x is there already."""
    return Message(
        delta=jax.tree.map(Unbilled, state.delta),
        optimizer=_counts_unbilled(state.optimizer),
        gradient=state.gradient,
    )


def _counts_unbilled(optimizer: Any) -> Any:
    """Whole numbers in an optimizer's state count its updates: both sides know them."""

    def mark(x):
        is_count = jnp.issubdtype(x.dtype, jnp.integer)
        return Unbilled(x) if is_count else x

    return jax.tree.map(mark, optimizer)


def _served(method: _Mime, state: MimeState, aggregate, change, gradient):
    """Moves x to the mean and s by V(c, s); nothing where no client arrived."""
    optimizer = method.optimizer(state.round)
    gradient = jax.tree.map(_as, state.gradient, gradient)
    _, moments = optimizer.update(gradient, state.optimizer, state.delta)
    steps = jax.tree.map(lambda d: -method.rate * d, change)
    after = MimeState(
        delta=optax.apply_updates(state.delta, steps),
        optimizer=trees.select(aggregate.n_clients > 0, moments, state.optimizer),
        gradient=state.gradient,
        round=state.round + 1,
    )
    return after, {}


def _as(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new array in the type of the old one: means come in f32."""
    return new.astype(old.dtype)
