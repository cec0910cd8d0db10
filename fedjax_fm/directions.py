"""Random directions over a tree, drawn from a key wherever they are read, never stored.

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

# The least number that is drawn: erf_inv(-1) would be minus infinity.
_ONE, _ZERO = np.float32(1), np.float32(0)
_LOWEST = np.nextafter(-_ONE, _ZERO)
_ROOT_OF_TWO = np.float32(np.sqrt(2))


# Outside of a program, a hundred small operations would be compiled one by one.
@jax.jit
def normal_at(key: jax.Array, index: jax.Array) -> jax.Array:
    """Numbers of N(0, 1) at places of a key's stream, f32[...].

    Equal to `jax.random.normal(key, (n,))[index]`, whatever n > index.

    Args:
      key: a threefry key.
      index: u32[...], the places.
    """
    fraction = to_uniform(random_bits_at(key, index))
    symmetric = jnp.maximum(_LOWEST, fraction * (_ONE - _LOWEST) + _LOWEST)
    return _ROOT_OF_TWO * jax.lax.erf_inv(symmetric)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Perturbed:
    """A leaf that stands for value + scale * z, and becomes an array where it is read.

    `leaf[...]` is all of it, `leaf[ids]` the rows of integer ids. A module of flax.nnx
    whose parameters hold such leaves reads them without knowing. A scan over the first
    axis slices it as it slices an array: the names of all rows are equal but for
    `start`.

    Attributes:
      value: [n, ...], the leaf.
      words: u32[n, 2], of a layer u32[2]; the leaf's key.
      start: u32[n], of a layer u32[]; place of its first entry in the leaf.
      scale: f32[n], of a layer f32[].
    """

    value: jax.Array
    words: jax.Array
    start: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that it stands for."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """Type of the array that it stands for; the sum is made in f32."""
        return self.value.dtype

    def __len__(self) -> int:
        return len(self.value)

    def _width(self) -> int:
        """Entries of a row."""
        return math.prod(self.value.shape[1:])

    def _name(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(words, start, scale) of the leaf, or of its layer."""
        if self.words.ndim == 2:
            return self.words[0], jnp.uint32(0), self.scale[0]
        return self.words, self.start, self.scale

    def _add(self, value: jax.Array, places: jax.Array) -> jax.Array:
        """A value plus scale * z at places of this leaf."""
        words, start, scale = self._name()
        return (value + scale * normal_at(words, start + places)).astype(value.dtype)

    def summed(self) -> jax.Array:
        """The array, value + scale * z; XLA may write it where `value` lies."""
        # Places in row-major order. Were they constants, XLA would compute them once,
        # before a loop, and store them; it cannot know that no number differs from
        # itself.
        shape = self.value.shape
        _, _, scale = self._name()
        zero = (scale != scale).astype(jnp.uint32)
        places = jnp.broadcast_to(zero, shape)
        for axis, n in enumerate(shape):
            index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            places = places * jnp.uint32(n) + index
        return self._add(self.value, places)

    def _drawn(self, value: jax.Array, first: jax.Array) -> jax.Array:
        """A value plus scale * z, made of equal parts that begin at `first`, u32[n]."""
        flat = value.reshape(first.size, -1)
        places = first[:, None] + jax.lax.iota(jnp.uint32, flat.shape[1])[None]
        made = _made(flat, lambda: self._add(flat, places))
        return made.reshape(value.shape)

    def __getitem__(self, index: Any) -> jax.Array:
        if index is ...:
            return self._drawn(self.value, jnp.zeros(1, jnp.uint32))
        ids = jnp.asarray(index)
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise TypeError(f"expected `...` or integer rows, got {ids.dtype}")
        rows = self.value.at[ids].get(mode="fill", fill_value=jnp.nan)
        numbers = ids.reshape(-1).astype(jnp.uint32)
        width = jnp.uint32(self._width())
        return self._drawn(rows, numbers * width)

    def rows(self, first: jax.Array | int, count: int) -> "Perturbed":
        """Consecutive rows, still not drawn.

        Args:
          first: number of the first row; may be traced.
          count: how many rows, static.
        """
        words, start, scale = self._name()
        value = jax.lax.dynamic_slice_in_dim(self.value, first, count)
        number = jnp.asarray(first).astype(jnp.uint32)
        place = start + number * jnp.uint32(self._width())
        return Perturbed(value, words, place, scale)


def _made(value: jax.Array, make) -> jax.Array:
    """`make()`, computed once.

    XLA's fusion on CPU would merge the drawing of a vector into the sum that it is
    broadcast to and draw it anew for every row; it does not look into a conditional,
    and it cannot know that no number differs from itself. NaN stays NaN.
    """
    first = value[(0,) * value.ndim]
    return jax.lax.cond(first == first, make, lambda: value)


def perturb(tree: Tree, key: jax.Array, scale: jax.Array | float) -> Tree:
    """A tree that stands for tree + scale * z(key), every leaf a `Perturbed`.

    Args:
      tree: floating leaves.
      key: a threefry key, names the direction.
      scale: f32[] or a number.

    Raises:
      TypeError: a leaf that is no floating number has no direction.
      ValueError: a leaf of more than 2**32 entries.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import directions
      >>> tree, key = {"w": jnp.zeros((4, 2))}, jax.random.key(0)
      >>> leaf = directions.perturb(tree, key, 0.1)["w"]
      >>> whole = leaf[...]
      >>> bool((leaf[jnp.array([2])] == whole[2]).all())
      True
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
    numbers = jnp.arange(len(leaves))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    words = keys if keys.ndim == 2 else jax.random.key_data(keys)
    named = [
        _named(leaf, words[number], jnp.float32(scale))
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, named)


def _named(leaf: jax.Array, words: jax.Array, scale: jax.Array) -> Perturbed:
    """A leaf with the name of its direction."""
    if leaf.ndim == 0:
        return Perturbed(leaf, words, jnp.uint32(0), scale)
    n, width = leaf.shape[0], math.prod(leaf.shape[1:])
    return Perturbed(
        value=leaf,
        words=jnp.broadcast_to(words, (n, 2)),
        start=jnp.arange(n, dtype=jnp.uint32) * jnp.uint32(width),
        scale=jnp.broadcast_to(scale, (n,)),
    )


def shift(tree: Tree, key: jax.Array, scale: jax.Array | float) -> Tree:
    """The arrays tree + scale * z(key); in place where `tree` is the carry of a loop.

    Args:
      tree: floating leaves.
      key: a threefry key, names the direction.
      scale: f32[] or a number.

    Raises:
      TypeError, ValueError: as for `perturb`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import directions
      >>> key = jax.random.key(0)
      >>> z = jax.random.normal(jax.random.fold_in(key, 0), (3,))
      >>> bool((directions.shift(jnp.zeros(3), key, 1.0) == z).all())
      True
    """

    def is_leaf(node):
        return isinstance(node, Perturbed)

    perturbed = perturb(tree, key, scale)
    return jax.tree.map(Perturbed.summed, perturbed, is_leaf=is_leaf)
