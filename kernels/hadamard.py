"""Random rotations of long vectors: block-diagonal Hadamard matrices with random signs.

A dense rotation costs n^2, one Hadamard matrix over the whole vector pads it to a power
of two. Blocks of 2^10 or more make the entries as good as Gaussian already, stay in
cache, and need no padding but in the last block.
"""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels import arguments

# A shorter tail is padded to it: too few summands are not near Gaussian.
SMALLEST_BLOCK = 128


def walsh_hadamard(x: jax.Array) -> jax.Array:
    """The orthonormal Walsh-Hadamard transform of the last axis, its own inverse.

    Args:
      x: f32[..., m], m a power of two.

    Returns:
      f32[..., m].

    Raises:
      ValueError: m is no power of two.

    Example:
      >>> import jax.numpy as jnp
      >>> walsh_hadamard(jnp.array([1.0, 0.0, 0.0, 1.0])).tolist()
      [1.0, 0.0, 0.0, 1.0]
    """
    m = x.shape[-1]
    if m & (m - 1) or m == 0:
        raise ValueError(f"expected a power of two, got a last axis of {m}")
    # log2 m stages of sums and differences, the same additions on every backend.
    half = 1
    while half < m:
        pairs = x.reshape(*x.shape[:-1], m // (2 * half), 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = jnp.stack([a + b, a - b], axis=-2).reshape(x.shape)
        half *= 2
    return x * jnp.float32(m**-0.5)


def random_signs(seed: jax.Array, n: int) -> jax.Array:
    """Signs of n coordinates, hashed from seed and index, bool[n], True for minus.

    Computed where they are used, never stored. The finaliser of MurmurHash3: good for
    rotations and rounding, no source of noise for privacy.

    Args:
      seed: u32[].
      n: coordinates.
    """
    h = jnp.arange(n, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9) + seed
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return (h >> 31) == 1


def block_sizes(n: int, block: int) -> tuple[int, int, int]:
    """(whole blocks, entries left over, size of the block for these; 0 for none).

    Args:
      n: entries of the vector.
      block: entries of a block, a power of two from 128.

    Raises:
      ValueError: another `block`.
    """
    arguments.whole("block", block, least=1)
    if block & (block - 1) or block < SMALLEST_BLOCK:
        raise ValueError(
            f"expected a power of two >= {SMALLEST_BLOCK}, got block={block}"
        )
    left = n % block
    tail = max(SMALLEST_BLOCK, 1 << (left - 1).bit_length()) if left else 0
    return n // block, left, tail


def rotated_length(n: int, block: int) -> int:
    """Entries of a rotated vector: n, and the padding of the last block.

    Args:
      n: entries of the vector.
      block: entries of a block, a power of two from 128.
    """
    whole, _, tail = block_sizes(n, block)
    return whole * block + tail


def _by_blocks(x: jax.Array, block: int, whole: int) -> jax.Array:
    """The transform of each block of a padded vector."""
    head, tail = x[: whole * block], x[whole * block :]
    parts = []
    if whole:
        blocks = walsh_hadamard(head.reshape(whole, block))
        parts.append(blocks.reshape(-1))
    if tail.shape[0]:
        parts.append(walsh_hadamard(tail))
    return jnp.concatenate(parts)


def _flip(x: jax.Array, seed: jax.Array) -> jax.Array:
    """Gives x the random signs of a seed."""
    return jnp.where(random_signs(seed, x.shape[0]), -x, x)


def _seed(seed: jax.Array, turn: int) -> jax.Array:
    """The seed of one turn."""
    return seed ^ jnp.uint32((0x632BE5AB * turn) & 0xFFFFFFFF)


def rotate(
    x: jax.Array, seed: jax.Array, block: int = 4096, turns: int = 1
) -> jax.Array:
    """Random signs, then a Hadamard matrix, block by block, `turns` times.

    Linear and orthogonal: norms of blocks stay. One turn spreads a dense vector; of a
    block with two or three entries that are not zero it makes a handful of values, far
    from Gaussian, which a second turn cures. The sum of a block's magnitudes must stay
    below the largest float.

    Args:
      x: f32[n].
      seed: u32[], decides the signs.
      block: entries of a block, a power of two from 128.
      turns: signs and transforms in a row.

    Returns:
      f32[rotated_length(n, block)].

    Raises:
      ValueError: `block` or `turns` is out of its bounds.
    """
    arguments.whole("turns", turns, least=1)
    whole, _, tail = block_sizes(x.shape[0], block)
    x = jnp.pad(jnp.asarray(x, jnp.float32), (0, whole * block + tail - x.shape[0]))
    for turn in range(turns):
        flipped = _flip(x, _seed(seed, turn))
        x = _by_blocks(flipped, block, whole)
    return x


def rotate_back(
    y: jax.Array, seed: jax.Array, n: int, block: int = 4096, turns: int = 1
) -> jax.Array:
    """The inverse of `rotate`, f32[n].

    Args:
      y: f32[rotated_length(n, block)].
      seed: u32[], as for `rotate`.
      n: entries of the vector that was rotated.
      block: as for `rotate`.
      turns: as for `rotate`.

    Raises:
      ValueError: `y` has another length.
    """
    arguments.whole("turns", turns, least=1)
    whole, _, _ = block_sizes(n, block)
    if y.shape != (rotated_length(n, block),):
        raise ValueError(
            f"{n} entries rotate to {rotated_length(n, block)} in blocks of "
            f"{block}, got shape {y.shape}"
        )
    for turn in reversed(range(turns)):
        turned = _by_blocks(y, block, whole)
        y = _flip(turned, _seed(seed, turn))
    return y[:n]
