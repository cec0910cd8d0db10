"""From trees to vectors and back: a channel that codes a vector carries any message."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.channels.buffers import is_bool
from fedjax_fm.channels.payload import Payload, payload_bits
from fedjax_fm.kernels import pack_bits, unpack_bits
from fedjax_fm.types import Channel, Rows, Tree, Unbilled

# what a channel says to messages of bytes
PACKED = (
    "the method encodes its messages itself: leave out the simulator's channel in "
    "that direction"
)


def is_rows(node):
    """Whether a node of a tree is a `Rows`.

    Args:
      node: any part of a tree.
    """
    return isinstance(node, Rows)


class Leaf(NamedTuple):
    """One part of a message.

    Attributes:
      kind: "float", "bool" or "rows".
      shape: of the array.
      dtype: of the array, by name.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Entries of the array."""
        return jax.ShapeDtypeStruct(self.shape, jnp.float32).size


@dataclass(frozen=True)
class Form:
    """Structure of a message, so that it can be flattened to one vector and rebuilt.

    Attributes:
      structure: the tree's.
      leaves: its parts in tree order.
    """

    structure: Hashable
    leaves: tuple[Leaf, ...]

    @property
    def n(self) -> int:
        """Floats in all leaves, rows that do not travel included."""
        return sum(leaf.size for leaf in self.leaves if leaf.kind != "bool")

    @property
    def has_rows(self) -> bool:
        """Whether the number of floats that travel depends on the data."""
        return any(leaf.kind == "rows" for leaf in self.leaves)


def form_of(tree: Tree, channel: str, rows: bool = True) -> Form:
    """The form of a message; refuses leaves that a lossy channel cannot carry.

    Args:
      tree: the message, or its shapes.
      channel: name of the channel, for messages.
      rows: whether the channel can carry `Rows`.

    Raises:
      TypeError: a leaf of integers, or `Rows` with rows=False.
      ValueError: an empty leaf; no leaf of floats.
    """
    paths, structure = jax.tree.flatten_with_path(tree, is_leaf=is_rows)
    leaves = []
    for path, leaf in paths:
        name = trees.path_of(path) or "the leaf"
        leaves.append(_leaf_of(leaf, name, channel, rows))
    if not paths:
        raise ValueError(
            f"{channel}: the message has no leaves, there is nothing to send"
        )
    form = Form(structure, tuple(leaves))
    if form.n == 0:
        raise ValueError(
            f"{channel}: the message has bool leaves only; `identity` packs them, "
            "`bernoulli_mask` too"
        )
    return form


def _leaf_of(leaf: Any, name: str, channel: str, rows: bool) -> Leaf:
    """The kind of a leaf; refuses those that a lossy channel cannot carry."""
    values = leaf.values if is_rows(leaf) else leaf
    check_array(channel, name, values)
    if is_rows(leaf):
        kind = "rows"
    else:
        kind = "bool" if is_bool(values) else "float"
    if kind != "bool" and not jnp.issubdtype(values.dtype, jnp.floating):
        is_packed = values.dtype == jnp.uint8
        hint = PACKED if is_packed else "send it through `identity` or leave it out"
        raise TypeError(
            f"{channel} carries floating leaves only (and packs bool ones), "
            f"but {name} is {values.dtype}; {hint}"
        )
    if kind == "rows" and not rows:
        raise TypeError(
            f"{channel} needs to know how many entries a message has, but "
            f"{name} is `Rows`, whose height the data decide; take "
            "`threshold`, a quantiser or `identity` for it"
        )
    if values.size == 0:
        raise ValueError(f"{channel}: the leaf {name} of shape {values.shape} is empty")
    dtype = str(values.dtype)
    return Leaf(kind, values.shape, dtype)


def check_array(channel: str, name: str, leaf: Any) -> None:
    """Refuses a leaf that is no array, nor the shape of one.

    Args:
      channel: name of the channel, for the message.
      name: of the leaf, for the message.
      leaf: what should be an array.

    Raises:
      TypeError: it is none.
    """
    if not hasattr(leaf, "dtype"):
        raise TypeError(
            f"{channel} carries arrays, but {name} is {leaf!r} of type "
            f"{type(leaf).__name__}; make it an array, for example by jnp.asarray"
        )


class Vector(NamedTuple):
    """A message as one vector."""

    x: jax.Array  # f32[n], in tree order; live entries first, then zeros
    live: jax.Array | None  # i32[], how many are live; None for all
    rest: Tree  # packed bool leaves, and heights of `Rows`


def _heights(rest: Tree) -> list[jax.Array]:
    """Heights of the `Rows` of a message."""
    return list(rest[1].value) if rest else []


def _alive(form: Form, heights: list[jax.Array]) -> jax.Array:
    """bool[n]: whether an entry belongs to a row that travels."""
    coming, parts = iter(heights), []
    for leaf in form.leaves:
        if leaf.kind == "rows":
            live = next(coming) * (leaf.size // leaf.shape[0])
            parts.append(jnp.arange(leaf.size) < live)
        elif leaf.kind == "float":
            parts.append(jnp.ones(leaf.size, bool))
    return jnp.concatenate(parts)


def _has_holes(form: Form) -> bool:
    """Whether dead rows may lie before live entries."""
    kinds = [leaf.kind for leaf in form.leaves if leaf.kind != "bool"]
    return "rows" in kinds[:-1]


def flatten(tree: Tree, form: Form) -> Vector:
    """All floats as one f32 vector, in tree order.

    Dead rows of `Rows` are left out, zeros fill the end.

    Args:
      tree: the message.
      form: its form.
    """
    floats, bools, heights = [], [], []
    for part in jax.tree.leaves(tree, is_leaf=is_rows):
        if is_rows(part):
            floats.append(part.values.reshape(-1))
            heights.append(jnp.asarray(part.count))
        elif is_bool(part):
            bools.append(pack_bits(part.reshape(-1), 1))
        else:
            floats.append(part.reshape(-1))
    x = jnp.concatenate([part.astype(jnp.float32) for part in floats])
    bools, heights = tuple(bools), tuple(heights)
    if not form.has_rows:
        return Vector(x, None, (bools, Unbilled(())) if bools else ())
    alive = _alive(form, list(heights))
    x = jnp.where(alive, x, 0.0)
    if _has_holes(form):
        place = jnp.where(alive, jnp.cumsum(alive) - 1, form.n)
        x = jnp.zeros_like(x).at[place].set(x, mode="drop")
    live = jnp.sum(alive, dtype=jnp.int32)
    return Vector(x, live, (bools, Unbilled(heights)))


def within(x: jax.Array, dtype: str | jnp.dtype) -> jax.Array:
    """x, its finite entries moved into the range of a floating type.

    Args:
      x: f32[...].
      dtype: the floating type.
    """
    most = float(jnp.finfo(dtype).max)
    clipped = jnp.clip(x, -most, most)
    return jnp.where(jnp.isfinite(x), clipped, x)


def unflatten(x: jax.Array, form: Form, rest: Tree = (), nearest: bool = False) -> Tree:
    """The inverse of `flatten`: the message, leaves in their dtypes.

    Args:
      x: f32[n].
      form: of the message.
      rest: packed bool leaves and heights of `Rows`, as `flatten` returned them.
      nearest: whether entries that were rounded beyond the largest number of their
        leaf's type become that number; else they become infinity, which is right for
        estimates without bias.
    """
    heights = _heights(rest)
    if form.has_rows:
        alive = _alive(form, heights)
        if _has_holes(form):
            x = x[jnp.maximum(jnp.cumsum(alive) - 1, 0)]
        x = jnp.where(alive, x, 0.0)
    bools, coming = iter(rest[0] if rest else ()), iter(heights)
    leaves: list[Any] = []
    start = 0
    for leaf in form.leaves:
        if leaf.kind == "bool":
            flags = unpack_bits(next(bools), 1, leaf.size)
            leaves.append(flags.astype(bool).reshape(leaf.shape))
            continue
        values = x[start : start + leaf.size].reshape(leaf.shape)
        if nearest:
            values = within(values, leaf.dtype)
        values = values.astype(leaf.dtype)
        if leaf.kind == "rows":
            leaves.append(Rows(values, next(coming)))
        else:
            leaves.append(values)
        start += leaf.size
    return jax.tree.unflatten(form.structure, leaves)


def vector_channel(
    name: str,
    setting: Hashable,
    encode: Callable[[jax.Array, jax.Array | None, jax.Array], tuple[Tree, tuple]],
    decode: Callable[[Tree, tuple, int], jax.Array],
    rows: bool = True,
    nearest: bool = False,
    law: Any = None,
) -> Channel:
    """A channel without state from a code of vectors; bool leaves are packed beside it.

    Args:
      name: for errors; with `setting` it tells a payload of this channel from others.
      setting: what both ends must have in common to understand each other.
      encode: `(x f32[n], live i32[] | None, key) -> (values, side)` as in `Payload`.
      decode: `(values, side, n) -> f32[n]`.
      rows: whether `encode` can handle `live`, hence `Rows`.
      nearest: whether it rounds to the nearest value, see `unflatten`.
      law: what the receiver may rely on, see `Channel.law`.
    """

    def encode_tree(state, tree, key):
        form = form_of(tree, name, rows)
        vector = flatten(tree, form)
        values, side = encode(vector.x, vector.live, key)
        return Payload(values, side, (name, setting, form), vector.rest), state

    def decode_tree(payload):
        form = opened(payload, name, setting)
        return unflatten(
            decode(payload.values, payload.side, form.n), form, payload.rest, nearest
        )

    return Channel(
        init=lambda shapes: (),
        encode=encode_tree,
        decode=decode_tree,
        bits=payload_bits,
        law=law,
    )


def opened(payload: Any, name: str, setting: Hashable) -> Any:
    """The form of a payload that this channel wrote.

    Args:
      payload: what a receiver got.
      name: of the channel that reads it.
      setting: of the channel that reads it.

    Raises:
      ValueError: another channel wrote it, or the same with other arguments.
    """
    found = payload.form if isinstance(payload, Payload) else type(payload).__name__
    if isinstance(found, tuple) and found[:2] == (name, setting):
        return found[2]
    wrote = (
        f"{found[0]} with {found[1]}"
        if isinstance(found, tuple) and len(found) == 3
        else found
    )
    raise ValueError(f"{name} with {setting} cannot read a payload of {wrote}")


def poisoned(values: jax.Array, x: jax.Array) -> jax.Array:
    """The values that were selected from x; all NaN when x has one.

    Selection alone would drop a NaN in silence.

    Args:
      values: f32[k], of x.
      x: f32[n].
    """
    has_nan = jnp.any(jnp.isnan(x))
    return jnp.where(has_nan, jnp.nan, values)


def blocks_of(x: jax.Array, width: int | None) -> jax.Array:
    """f32[ceil(n / w), w]: a vector in blocks of w entries, zeros at the end.

    Args:
      x: f32[n].
      width: w; one block for None or a width above n.
    """
    n = x.shape[0]
    width = min(width or n, n)
    return jnp.pad(x, (0, -n % width)).reshape(-1, width)


def live_per_block(n: int, width: int, live: jax.Array | None) -> jax.Array:
    """i32[ceil(n / width)]: entries of each block that are not padding.

    Args:
      n: entries of the vector.
      width: of a block.
      live: i32[], entries that travel; None for all.
    """
    starts = jnp.arange(-(-n // width)) * width
    return jnp.clip((n if live is None else live) - starts, 0, width)
