"""What DoCoFL's server sends: anchors that are fetched once, and corrections.

    y <- C_a(w) every `every` rounds;  sends C_c(w - y) to all, y to those without it

Dorfman, Vargaftik, Ben-Itzhak, Levy, 2023, arXiv 2302.00543, algorithm 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.averaging import Averaging
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.channels.payload import sent_if
from fedjax_fm.types import Channel, Tree, Unbilled


class DoCoFlState(NamedTuple):
    """Server state.

    Attributes:
      delta: w.
      anchor: payload of y.
      correction: payload of w - y.
      version: i32[], anchors made before this one.
      age: i32[], rounds since y was made.
      optimizer: the server optimizer's state.
      key: of the channels.
    """

    delta: Tree
    anchor: Any
    correction: Any
    version: jax.Array
    age: jax.Array
    optimizer: Any
    key: jax.Array


class Message(NamedTuple):
    """What one client fetches."""

    anchor: Any  # leaves `Rows` of one row, which a client that holds it is not sent
    correction: Any
    version: Any  # i32[], unbilled


class DoCoFl(NamedTuple):
    """The hyper-parameters of `docofl`, checked."""

    average: Averaging
    anchor: Channel
    correction: Channel
    every: int


def init(method: DoCoFl, delta, key, setting) -> DoCoFlState:
    """The first anchor is the first model."""
    key = stream(key, Stream.ENCODE)
    anchor, _ = method.anchor.encode(method.anchor.init(delta), delta, key)
    return DoCoFlState(
        delta=delta,
        anchor=anchor,
        correction=_correction(method, delta, anchor, key),
        version=jnp.int32(0),
        age=jnp.int32(0),
        optimizer=method.average.optimizer.init(delta),
        key=key,
    )


def _correction(method: DoCoFl, delta, anchor, key) -> Any:
    """C_c(w - y)."""
    change = trees.subtract(delta, method.anchor.decode(anchor))
    state = method.correction.init(change)
    return method.correction.encode(state, change, jax.random.fold_in(key, 1))[0]


def broadcast(state: DoCoFlState) -> Message:
    """All that `_address` reads."""
    return Message(state.anchor, state.correction, Unbilled(state.version))


def address(message: Message, held, client) -> Message:
    """The anchor for those only who do not hold it."""
    anchor = sent_if(held != message.version, message.anchor)
    return Message(anchor, message.correction, Unbilled(message.version))


def with_messages(method: DoCoFl, state: DoCoFlState, delta: Tree) -> DoCoFlState:
    """The state with a new model, a new correction and, when it is time, a new anchor."""
    key, own = jax.random.split(state.key)
    is_due = state.age + 1 >= method.every

    def renewed():
        return method.anchor.encode(method.anchor.init(delta), delta, own)[0]

    anchor = jax.lax.cond(is_due, renewed, lambda: state.anchor)
    return state._replace(
        delta=delta,
        anchor=anchor,
        correction=_correction(method, delta, anchor, own),
        version=state.version + is_due.astype(jnp.int32),
        age=jnp.where(is_due, 0, state.age + 1),
        key=key,
    )
