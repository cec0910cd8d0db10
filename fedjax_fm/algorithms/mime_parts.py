"""What Mime and MimeLite share: the server's state, frozen steps, the server's update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import (
    LocalTraining,
    local_training,
    optimizer_of,
)
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.passes import gradient_over, passes_over
from fedjax_fm.types import Tree, Unbilled


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


class Mime(NamedTuple):
    """The hyper-parameters of both, checked."""

    local: LocalTraining
    rate: float

    def optimizer(self, round_index: jax.Array) -> optax.GradientTransformation:
        """U and V in this round."""
        return optimizer_of(self.local.optimizer, round_index)


def checked_mime(task, client_optimizer, rate: float, **walk: Any) -> Mime:
    """The hyper-parameters, checked.

    Args:
      task: the loss.
      client_optimizer: the central one.
      rate: of the server.
      **walk: epochs, local_steps and batch_size.
    """
    checks.real("server_learning_rate", rate, above=0)
    return Mime(local_training(task, client_optimizer, **walk), rate)


def first_state(method: Mime) -> Callable[..., MimeState]:
    """`Algorithm.init`.

    Args:
      method: the hyper-parameters.
    """

    def init(delta, key, setting):
        first = jnp.int32(0)
        return MimeState(
            delta=delta,
            optimizer=method.optimizer(first).init(delta),
            gradient=jax.tree.map(jnp.zeros_like, delta),
            round=first,
        )

    return init


def gradient_at_start(method: Mime, start, backbone, data, key) -> Tree:
    """The gradient of all of a client's examples at x.

    Args:
      method: the hyper-parameters.
      start: x.
      backbone: what is frozen.
      data: the client's.
      key: the client's.
    """
    key = stream(key, Stream.WHOLE_PASS)
    given = (start, backbone, data, key)
    return gradient_over(method.local.task, *given, n_batches=passes_over(data))[0]


def frozen_steps(method: Mime, message: Message, backbone, data, key, **changes: Any):
    """Local steps U with the server's s, which they leave as it is.

    Args:
      method: the hyper-parameters.
      message: x and s.
      backbone: what is frozen.
      data: the client's.
      key: the client's.
      **changes: further keywords of `train`.
    """

    def frozen(optimizer):
        def update(updates, state, params=None):
            steps, _ = optimizer.update(updates, message.optimizer, params)
            return steps, state

        return optax.GradientTransformation(lambda params: (), update)

    local = method.local.with_optimizer(frozen)
    return local.run(message.delta, backbone, data, key, **changes)


def counts_unbilled(optimizer: Any) -> Any:
    """Whole numbers in an optimizer's state count its updates: both sides know them.

    Args:
      optimizer: the state.
    """

    def mark(x):
        is_count = jnp.issubdtype(x.dtype, jnp.integer)
        return Unbilled(x) if is_count else x

    return jax.tree.map(mark, optimizer)


def served(method: Mime, state: MimeState, aggregate, change, gradient):
    """Moves x to the mean and s by V(c, s); nothing where no client arrived.

    Args:
      method: the hyper-parameters.
      state: before.
      aggregate: says how many arrived.
      change: the mean of x - y.
      gradient: c.
    """
    optimizer = method.optimizer(state.round)
    gradient = jax.tree.map(as_type, state.gradient, gradient)
    _, moments = optimizer.update(gradient, state.optimizer, state.delta)
    steps = jax.tree.map(lambda d: -method.rate * d, change)
    after = MimeState(
        delta=optax.apply_updates(state.delta, steps),
        optimizer=trees.select(aggregate.n_clients > 0, moments, state.optimizer),
        gradient=state.gradient,
        round=state.round + 1,
    )
    return after, {}


def as_type(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new array in the type of the old one: means come in f32.

    Args:
      old: an array.
      new: another of its shape.
    """
    return new.astype(old.dtype)
