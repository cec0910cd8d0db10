"""Error feedback: what a lossy channel dropped is sent later."""

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.channels.arguments import checked_channel
from fedjax_fm.channels.vectors import check_array, is_rows
from fedjax_fm.types import Channel, Rows


def error_feedback(channel: Channel) -> Channel:
    """EF14: sends C(x + e) and keeps e <- x + e - C(x + e), one residual a sender, e = 0 at first.

    Telescopes: the sum of all that was sent plus the residual is the sum of all x, up
    to the rounding of x + e; for channels that send entries exactly or not at all
    (top_k, threshold) sent + e' is x + e to the last bit. Converges for contractive
    channels; an unbiased channel of large variance (few levels with the l2 norm) makes
    the residual grow. Bits: those of the channel. The residual costs the sender the
    memory of a message.

    Leaves that hold no floats pass as they are. Rows of a `Rows` leaf that do not
    travel this time keep their residual.

    References:
      Seide et al. 2014; Stich et al. 2018, arXiv 1809.07599; Karimireddy et al. 2019,
      arXiv 1901.09847.
    """
    checked_channel("error_feedback", channel)

    def init(shapes):
        return jax.tree.map(_no_error, shapes, is_leaf=is_rows), channel.init(shapes)

    def encode(state, tree, key):
        residual, inner = state
        for path, leaf in jax.tree.leaves_with_path(tree):
            check_array("error_feedback", trees.path_of(path) or "the leaf", leaf)
        wanted = jax.tree.map(_wanted, tree, residual, is_leaf=is_rows)
        payload, inner = channel.encode(inner, wanted, key)
        sent = channel.decode(payload)
        return payload, (
            jax.tree.map(_left, wanted, residual, sent, is_leaf=is_rows),
            inner,
        )

    return Channel(init=init, encode=encode, decode=channel.decode, bits=channel.bits)


def _is_float(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _no_error(leaf):
    values = leaf.values if is_rows(leaf) else leaf
    return (
        jnp.zeros(values.shape, values.dtype)
        if _is_float(values)
        else jnp.zeros((), values.dtype)
    )


def _wanted(leaf, error):
    if is_rows(leaf):
        return Rows(
            jnp.where(_travels(leaf), leaf.values + error, jnp.zeros_like(error)),
            leaf.count,
        )
    return leaf + error if _is_float(leaf) else leaf


def _left(leaf, error, sent):
    if is_rows(leaf):
        return jnp.where(_travels(leaf), leaf.values - sent.values, error)
    return leaf - sent if _is_float(leaf) else error


def _travels(rows: Rows) -> jax.Array:
    """bool[rows, 1, ...]."""
    shape = (-1, *[1] * (rows.values.ndim - 1))
    return (jnp.arange(rows.values.shape[0]) < rows.count).reshape(shape)
