"""From trees to vectors and back: a channel that codes one vector of floats carries any message."""

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


def is_rows(node):
    return isinstance(node, Rows)


class Leaf(NamedTuple):
    """One part of a message."""

    kind: str  # "float", "bool" or "rows"
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Entries."""
        return jax.ShapeDtypeStruct(self.shape, jnp.float32).size


@dataclass(frozen=True)
class Form:
    """Structure of a message, so that it can be flattened to one vector and rebuilt."""

    structure: Hashable
    leaves: tuple[Leaf, ...]

    @property
    def n(self) -> int:
        """Floats in all leaves, rows that do not travel included."""
        return sum(leaf.size for leaf in self.leaves if leaf.kind != "bool")

    @property
    def has_rows(self) -> bool:
        """Whether the data decide how many floats travel."""
        return any(leaf.kind == "rows" for leaf in self.leaves)


def form_of(tree: Tree, channel: str, rows: bool = True) -> Form:
    """The form of a message; refuses leaves that a lossy channel cannot carry.

    Raises:
      TypeError: a leaf of integers, or `Rows` with rows=False.
      ValueError: an empty leaf; no leaf of floats.
    """
    paths, structure = jax.tree.flatten_with_path(tree, is_leaf=is_rows)
    leaves = []
    for path, leaf in paths:
        name, values = (
            trees.path_of(path) or "the leaf",
            leaf.values if is_rows(leaf) else leaf,
        )
        check_array(channel, name, values)
        kind = "rows" if is_rows(leaf) else "bool" if is_bool(values) else "float"
        if kind != "bool" and not jnp.issubdtype(values.dtype, jnp.floating):
            raise TypeError(
                f"{channel} carries floating leaves only (and packs bool ones), "
                f"but {name} is {values.dtype}; send it through `identity` or "
                "leave it out of the upload"
            )
        if kind == "rows" and not rows:
            raise TypeError(
                f"{channel} needs to know how many entries a message has, but "
                f"{name} is `Rows`, whose height the data decide; take "
                "`threshold`, a quantiser or `identity` for it"
            )
        if values.size == 0:
            raise ValueError(
                f"{channel}: the leaf {name} of shape {values.shape} is empty"
            )
        leaves.append(Leaf(kind, values.shape, str(values.dtype)))
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


def check_array(channel: str, name: str, leaf: Any) -> None:
    """TypeError for a leaf that is no array, nor the shape of one."""
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
    return list(rest[1].value) if rest else []


def _alive(form: Form, heights: list[jax.Array]) -> jax.Array:
    """bool[n]: belongs to a row that travels."""
    coming, parts = iter(heights), []
    for leaf in form.leaves:
        if leaf.kind == "rows":
            row = leaf.size // leaf.shape[0]
            parts.append(jnp.arange(leaf.size) < next(coming) * row)
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
    """
    parts = jax.tree.leaves(tree, is_leaf=is_rows)
    floats = [
        part.values if is_rows(part) else part
        for part in parts
        if is_rows(part) or not is_bool(part)
    ]
    x = jnp.concatenate([part.reshape(-1).astype(jnp.float32) for part in floats])
    bools = tuple(
        pack_bits(part.reshape(-1), 1)
        for part in parts
        if not is_rows(part) and is_bool(part)
    )
    heights = tuple(jnp.asarray(part.count) for part in parts if is_rows(part))
    if not form.has_rows:
        return Vector(x, None, (bools, Unbilled(())) if bools else ())
    alive = _alive(form, list(heights))
    x = jnp.where(alive, x, 0.0)
    if _has_holes(form):
        place = jnp.where(alive, jnp.cumsum(alive) - 1, form.n)
        x = jnp.zeros_like(x).at[place].set(x, mode="drop")
    return Vector(x, jnp.sum(alive, dtype=jnp.int32), (bools, Unbilled(heights)))


def within(x: jax.Array, dtype: str | jnp.dtype) -> jax.Array:
    """x, its finite entries moved into the range of a floating type."""
    most = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -most, most), x)


def unflatten(x: jax.Array, form: Form, rest: Tree = (), nearest: bool = False) -> Tree:
    """The inverse of `flatten`: f32[n] -> the message, leaves in their dtypes.

    Args:
      nearest: entries that were rounded beyond the largest number of their leaf's type
        become that number; else infinity, which is right for estimates without bias.
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
            leaves.append(
                unpack_bits(next(bools), 1, leaf.size).astype(bool).reshape(leaf.shape)
            )
            continue
        values = x[start : start + leaf.size].reshape(leaf.shape)
        values = (within(values, leaf.dtype) if nearest else values).astype(leaf.dtype)
        leaves.append(Rows(values, next(coming)) if leaf.kind == "rows" else values)
        start += leaf.size
    return jax.tree.unflatten(form.structure, leaves)


def vector_channel(
    name: str,
    setting: Hashable,
    encode: Callable[[jax.Array, jax.Array | None, jax.Array], tuple[Tree, tuple]],
    decode: Callable[[Tree, tuple, int], jax.Array],
    rows: bool = True,
    nearest: bool = False,
) -> Channel:
    """A channel from a code of vectors.

    No state, the message as one vector, bool leaves packed beside it.

    Args:
      name: for errors; with `setting` it tells a payload of this channel from others.
      setting: what both ends must have in common to understand each other.
      encode: `(x f32[n], live i32[] | None, key) -> (values, side)` as in `Payload`.
      decode: `(values, side, n) -> f32[n]`.
      rows: whether `encode` can handle `live`.
      nearest: whether it rounds to the nearest value, see `unflatten`.
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
    )


def opened(payload: Any, name: str, setting: Hashable) -> Any:
    """The form of a payload, or ValueError when another channel, or the same with other
    arguments, wrote it.
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
    """The values that were selected from x.

    All NaN when x has a NaN, which selection would drop in silence.
    """
    return jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, values)


def blocks_of(x: jax.Array, width: int | None) -> jax.Array:
    """f32[n] -> f32[ceil(n / w), w], zeros at the end; one block for None or a width above n."""
    n = x.shape[0]
    width = min(width or n, n)
    return jnp.pad(x, (0, -n % width)).reshape(-1, width)


def live_per_block(n: int, width: int, live: jax.Array | None) -> jax.Array:
    """i32[ceil(n / width)]: entries of each block that are not padding."""
    starts = jnp.arange(-(-n // width)) * width
    return jnp.clip((n if live is None else live) - starts, 0, width)
