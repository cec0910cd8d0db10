"""Payloads: packed arrays that a receiver can decode without anything else."""

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm.channels.buffers import is_bool
from fedjax_fm.types import Rows, Tree, Unbilled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Payload:
    """One encoded message.

    Attributes:
      values: float arrays that the next channel of a `chain` may encode further; ()
        when there are none.
      side: what travels as it is: positions, codes, scales, seeds.
      form: static facts that both ends share by configuration (shapes, numbers of
        bits); not billed.
      rest: what lies beside the floats in the message: bool leaves, packed, and heights
        of `Rows`.
    """

    values: Tree
    side: tuple[Any, ...]
    form: Hashable = dataclasses.field(metadata={"static": True})
    rest: Tree = ()


def payload_bits(payload: Tree) -> int | jax.Array:
    """Bits of all buffers of a payload: the sum of their lengths, nothing estimated.

    There is no header. A bool array counts one bit an entry, in whole bytes a leaf.
    `Rows` count the rows that travel; their height, like every shape, is no part of the
    bill, and a length that depends on the data is sent, and billed, beside them.
    `Unbilled` counts nothing.

    Args:
      payload: any tree of arrays, `Rows` and `Unbilled`, or of shapes.

    Returns:
      int where shapes tell the length, u32[] where some `Rows` are among the buffers:
      good to 2^32 bits, 512 MiB.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> buffers = {"codes": jnp.zeros(3, jnp.uint8), "seed": jnp.uint32(7)}
      >>> channels.payload_bits(buffers)
      56
    """

    def is_part(node) -> bool:
        return isinstance(node, Unbilled | Rows)

    total, counted = 0, []
    for part in jax.tree.leaves(payload, is_leaf=is_part):
        if isinstance(part, Unbilled):
            continue
        if isinstance(part, Rows):
            counted.append(_rows_bits(part))
        elif is_bool(part):
            total += 8 * -(-part.size // 8)
        else:
            total += 8 * part.size * part.dtype.itemsize
    return sum(counted, jnp.uint32(total)) if counted else total


def _rows_bits(rows: Rows) -> jax.Array:
    """u32[]: bits of the rows that travel."""
    count = jnp.asarray(rows.count).astype(jnp.uint32)
    size = jax.ShapeDtypeStruct(rows.values.shape[1:], rows.values.dtype).size
    if is_bool(rows.values):
        return (count * jnp.uint32(size) + 7) // 8 * 8
    return count * jnp.uint32(8 * size * rows.values.dtype.itemsize)


def sent_if(condition: jax.Array, payload: Tree) -> Tree:
    """A payload that travels, and is billed, only where a condition holds.

    Args:
      condition: bool[].
      payload: any tree of arrays, `Rows` and `Unbilled`.

    Returns:
      The same buffers as `Rows` of one row; zeros and none where it does not hold.
    """
    times = condition.astype(jnp.int32)

    def only(x):
        return jnp.where(condition, x, jnp.zeros_like(x))

    def part(node):
        if isinstance(node, Unbilled):
            return node
        if isinstance(node, Rows):  # whose height the data decide
            return Rows(only(node.values), node.count * times)
        return Rows(only(node)[None], times)

    def is_part(node):
        return isinstance(node, Rows | Unbilled)

    return jax.tree.map(part, payload, is_leaf=is_part)
