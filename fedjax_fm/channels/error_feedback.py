"""Error feedback: what a lossy channel dropped is sent later."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.channels.arguments import checked_channel
from fedjax_fm.channels.vectors import check_array, is_rows
from fedjax_fm.types import Channel, Rows, Tree


class Feedback(NamedTuple):
    """What a sender keeps.

    Attributes:
      residual: e, like a message.
      inner: the state of the channel inside.
    """

    residual: Tree
    inner: Any


def error_feedback(channel: Channel) -> Channel:
    """Adds what earlier messages lost to the next one: e <- x + e - C(x + e).

    C(x + e) is sent. Each sender keeps one residual e, zero at first, which costs it
    the memory of a message. The scheme telescopes: the sum of all that was sent plus
    the residual is the sum of all x, up to the rounding of x + e. For channels that
    send entries exactly or not at all (`top_k`, `threshold`), what was sent plus the
    new residual is x + e to the last bit.

    Converges for contractive channels. An unbiased channel of large variance (few
    levels with the l2 norm) makes the residual grow. Bits: those of `channel`. Leaves
    that hold no floats pass as they are. Rows of a `Rows` leaf that do not travel this
    time keep their residual.

    Args:
      channel: a contractive channel, C.

    Returns:
      A channel whose state is `Feedback`. A simulator refuses it as the uplink of a
      method whose clients follow what the server decoded, as SCAFFOLD's do: they send
      again by themselves what was lost; and of one whose uploads hold other entries
      each round (`Exchange.same_entries`).

    Raises:
      TypeError: `channel` is no channel; at a message, a leaf that is no array.

    References:
      Seide et al. 2014; Stich et al. 2018, arXiv 1809.07599; Karimireddy et al. 2019,
      arXiv 1901.09847.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.error_feedback(channels.top_k(0.5))
      >>> tree = {"w": jnp.array([3.0, 2.0])}
      >>> state, encode = channel.init(tree), jax.jit(channel.encode)
      >>> payload, state = encode(state, tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist(), state[0]["w"].tolist()
      ([3.0, 0.0], [0.0, 2.0])
      >>> payload, state = encode(state, tree, jax.random.key(1))
      >>> channel.decode(payload)["w"].tolist(), state[0]["w"].tolist()
      ([0.0, 4.0], [3.0, 0.0])
    """
    checked_channel("error_feedback", channel)

    def init(shapes):
        residual = jax.tree.map(_no_error, shapes, is_leaf=is_rows)
        return Feedback(residual, channel.init(shapes))

    def encode(state, tree, key):
        residual, inner = state
        for path, leaf in jax.tree.leaves_with_path(tree):
            check_array("error_feedback", trees.path_of(path) or "the leaf", leaf)
        wanted = jax.tree.map(_wanted, tree, residual, is_leaf=is_rows)
        payload, inner = channel.encode(inner, wanted, key)
        sent = channel.decode(payload)
        residual = jax.tree.map(_left, wanted, residual, sent, is_leaf=is_rows)
        return payload, Feedback(residual, inner)

    return Channel(init=init, encode=encode, decode=channel.decode, bits=channel.bits)


def keeps_residual(channel: Channel, message: Tree) -> bool:
    """Whether error feedback is in a channel, alone or as a part.

    Args:
      channel: of any kind.
      message: that it carries, or its shapes.

    Example:
      >>> from fedjax_fm import channels
      >>> message = {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}
      >>> keeps_residual(channels.error_feedback(channels.top_k(0.5)), message)
      True
      >>> keeps_residual(channels.top_k(0.5), message)
      False
    """
    state = jax.eval_shape(channel.init, message)
    parts = jax.tree.leaves(state, is_leaf=_is_feedback)
    return any(map(_is_feedback, parts))


def _is_feedback(node: Any) -> bool:
    return isinstance(node, Feedback)


def _is_float(leaf) -> bool:
    """Whether a leaf has a residual."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _no_error(leaf):
    """The first residual of a leaf: zeros of its shape, or a scalar for other types."""
    values = leaf.values if is_rows(leaf) else leaf
    return jnp.zeros(values.shape if _is_float(values) else (), values.dtype)


def _wanted(leaf, error):
    """What should arrive: the leaf and its residual, where it travels."""
    if is_rows(leaf):
        nothing = jnp.zeros_like(error)
        values = jnp.where(_travels(leaf), leaf.values + error, nothing)
        return Rows(values, leaf.count)
    return leaf + error if _is_float(leaf) else leaf


def _left(leaf, error, sent):
    """The next residual: what was wanted and not sent."""
    if is_rows(leaf):
        return jnp.where(_travels(leaf), leaf.values - sent.values, error)
    return leaf - sent if _is_float(leaf) else error


def _travels(rows: Rows) -> jax.Array:
    """bool[rows, 1, ...]: which rows travel."""
    shape = (-1, *[1] * (rows.values.ndim - 1))
    return (jnp.arange(rows.values.shape[0]) < rows.count).reshape(shape)
