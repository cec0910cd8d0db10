"""Random directions over a tree, drawn from a key wherever they are read, and never stored.

z(key) ~ N(0, I): leaf number l holds `jax.random.normal(jax.random.fold_in(key, l),
shape)` in f32, bit for bit. An entry depends on the key, its leaf and its place there
alone, so a layer, a row or a block of a leaf is drawn by itself: a forward pass at w +
c z(key) needs the memory of a forward pass at w.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.kernels.random_bits import random_bits_at, to_uniform
from fedjax_fm.types import Tree

_LOWEST = np.nextafter(
    np.float32(-1), np.float32(0)
)  # erf_inv(-1) would be minus infinity


@jax.jit  # outside of a program, a hundred small operations would be compiled one by one
def normal_at(key: jax.Array, index: jax.Array) -> jax.Array:
    """N(0, 1) in f32 at u32 places of a key's stream.

    `jax.random.normal(key, (n,))[index]`, whatever n > index.
    """
    fraction = to_uniform(random_bits_at(key, index))
    symmetric = jnp.maximum(_LOWEST, fraction * (np.float32(1) - _LOWEST) + _LOWEST)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(symmetric)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Perturbed:
    """A leaf that stands for value + scale * z, and becomes an array where it is read.

    `leaf[...]` is all of it, `leaf[ids]` the rows of integer ids. A module of flax.nnx
    whose parameters hold such leaves reads them without knowing. A scan over the first
    axis slices it as it slices an array: the names of all rows are equal but for
    `start`.
    """

    value: jax.Array  # [n, ...]
    words: jax.Array  # u32[n, 2], of a layer u32[2]: the leaf's key
    start: jax.Array  # u32[n], of a layer u32[]: place of its first entry in the leaf
    scale: jax.Array  # f32[n], of a layer f32[]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that it stands for."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """Of the array that it stands for; the sum is made in f32."""
        return self.value.dtype

    def __len__(self) -> int:
        return len(self.value)

    def _width(self) -> int:
        return math.prod(self.value.shape[1:])

    def _name(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        whole = self.words.ndim == 2
        return (
            (self.words[0], jnp.uint32(0), self.scale[0])
            if whole
            else (self.words, self.start, self.scale)
        )

    def _add(self, value: jax.Array, places: jax.Array) -> jax.Array:
        words, start, scale = self._name()
        return (value + scale * normal_at(words, start + places)).astype(value.dtype)

    def summed(self) -> jax.Array:
        """Value + scale * z, an array; XLA may write it where `value` lies."""
        # Places in row-major order. Were they constants, XLA would compute them once,
        # before a loop, and store them; it cannot know that no number differs from
        # itself.
        scale = self._name()[2]
        places = jnp.broadcast_to((scale != scale).astype(jnp.uint32), self.value.shape)
        for axis, n in enumerate(self.value.shape):
            places = places * jnp.uint32(n) + jax.lax.broadcasted_iota(
                jnp.uint32, self.value.shape, axis
            )
        return self._add(self.value, places)

    def _drawn(self, value: jax.Array, first: jax.Array) -> jax.Array:
        """`value`, which consists of equal parts that begin at places u32[n] of this
        leaf, plus scale * z.
        """
        flat = value.reshape(first.size, -1)
        places = first[:, None] + jax.lax.iota(jnp.uint32, flat.shape[1])[None]
        return _made(flat, lambda: self._add(flat, places)).reshape(value.shape)

    def __getitem__(self, index: Any) -> jax.Array:
        if index is ...:
            return self._drawn(self.value, jnp.zeros(1, jnp.uint32))
        ids = jnp.asarray(index)
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise TypeError(f"expected `...` or integer rows, got {ids.dtype}")
        rows = self.value.at[ids].get(mode="fill", fill_value=jnp.nan)
        return self._drawn(
            rows, ids.reshape(-1).astype(jnp.uint32) * jnp.uint32(self._width())
        )

    def rows(self, first: jax.Array | int, count: int) -> "Perturbed":
        """Rows first .. first + count - 1, still not drawn."""
        words, start, scale = self._name()
        value = jax.lax.dynamic_slice_in_dim(self.value, first, count)
        place = start + jnp.asarray(first).astype(jnp.uint32) * jnp.uint32(
            self._width()
        )
        return Perturbed(value, words, place, scale)


def _made(value: jax.Array, make) -> jax.Array:
    """`make()`, once.

    XLA's fusion on CPU would merge the drawing of a vector into the sum that it is
    broadcast to and draw it anew for every row; it does not look into a conditional,
    and it cannot know that no number differs from itself. NaN stays NaN.
    """
    first = value[(0,) * value.ndim]
    return jax.lax.cond(first == first, make, lambda: value)


def perturb(tree: Tree, key: jax.Array, scale: jax.Array | float) -> Tree:
    """Tree + scale * z(key), every leaf a `Perturbed`.

    Raises:
      TypeError: a leaf that is no floating number has no direction.
      ValueError: a leaf of more than 2**32 entries.
    """
    checks.real("scale", scale)
    leaves, structure = jax.tree.flatten(tree)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"expected floating leaves, got {leaf.dtype}{list(leaf.shape)}"
            )
        if leaf.size > 2**32:
            raise ValueError(
                f"expected leaves of at most 2**32 entries, got {list(leaf.shape)}"
            )
    # All at once; one by one they are a loop each, and written out they fuse with the
    # drawing, which compiles slowly.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(leaves)))
    words = keys if keys.ndim == 2 else jax.random.key_data(keys)
    named = [
        _named(leaf, words[number], jnp.float32(scale))
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, named)


def _named(leaf: jax.Array, words: jax.Array, scale: jax.Array) -> Perturbed:
    if leaf.ndim == 0:
        return Perturbed(leaf, words, jnp.uint32(0), scale)
    n = leaf.shape[0]
    starts = jnp.arange(n, dtype=jnp.uint32) * jnp.uint32(math.prod(leaf.shape[1:]))
    return Perturbed(
        leaf, jnp.broadcast_to(words, (n, 2)), starts, jnp.broadcast_to(scale, (n,))
    )


def shift(tree: Tree, key: jax.Array, scale: jax.Array | float) -> Tree:
    """Tree + scale * z(key) as arrays; where `tree` is the carry of a loop, in place.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> key = jax.random.key(0)
      >>> z = jax.random.normal(jax.random.fold_in(key, 0), (3,))
      >>> bool((shift(jnp.zeros(3), key, 1.0) == z).all())
      True
    """

    def is_leaf(node):
        return isinstance(node, Perturbed)

    return jax.tree.map(Perturbed.summed, perturb(tree, key, scale), is_leaf=is_leaf)
