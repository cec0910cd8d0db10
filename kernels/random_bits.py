"""Random words of jax.random, bit for bit, as straight arithmetic that fuses with what uses them.

On CPU, jax.random lowers threefry to rolled loops over whole arrays: 9 times the time
of the same hash written out. Word i depends on (key, i) alone, so a block of a long
vector can be drawn where it is used.
"""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.arguments import whole
from fedjax_fm.kernels.dispatch import on_cpu

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry2x32(
    key: tuple[jax.Array, jax.Array], high: jax.Array, low: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The Threefry-2x32 block cipher, 20 rounds.

    Two words of key, two of counter -> two words, all u32.

    References:
      Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011.
    """
    words = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    a, b = high + words[0], low + words[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            a = a + b
            b = a ^ ((b << jnp.uint32(rotation)) | (b >> jnp.uint32(32 - rotation)))
        a = a + words[(group + 1) % 3]
        b = b + words[(group + 2) % 3] + jnp.uint32(group + 1)
    return a, b


def key_words(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two u32 words of a threefry key, typed or raw u32[2]; ValueError for every other kind."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(key)) not in ("threefry2x32", "fry"):
            raise ValueError(
                f"expected a threefry2x32 key, got one of {jax.random.key_impl(key)}"
            )
        key = jax.random.key_data(key)
    if key.shape != (2,) or key.dtype != jnp.uint32:
        raise ValueError(
            f"expected one threefry2x32 key, got {key.dtype}{list(key.shape)} of key words"
        )
    return key[0], key[1]


def random_bits_at(key: jax.Array, index: jax.Array) -> jax.Array:
    """Word `index` of the endless stream of a key.

    U32[...] -> u32[...], equal to random_bits(key, n)[index].
    """
    index = jnp.asarray(index).astype(jnp.uint32)
    high, low = threefry2x32(key_words(key), jnp.zeros_like(index), index)
    return high ^ low


def random_bits(key: jax.Array, n: int) -> jax.Array:
    """u32[n], equal to `jax.random.bits(key, (n,))` in its partitionable layout, the
    default since jax 0.5.

    The key is consumed. A longer draw begins with the shorter one. Good for rounding
    and masks, and, being threefry, for the noise of differential privacy.

    Args:
      key: a threefry key; ValueError for other kinds, whose words differ between
        backends and under vmap.
      n: at most 2**32.

    Example:
      >>> import jax
      >>> key = jax.random.key(0)
      >>> bool((random_bits(key, 5) == jax.random.bits(key, (5,))).all())
      True
    """
    whole("n", n, least=0, most=2**32)
    return random_bits_at(key, jax.lax.iota(jnp.uint32, n))


def to_uniform(bits: jax.Array) -> jax.Array:
    """u32 -> f32 on [0, 1): the upper 23 bits as a fraction, as jax.random.uniform reads them."""
    return (
        jax.lax.bitcast_convert_type(
            (bits >> jnp.uint32(9)) | jnp.uint32(0x3F800000), jnp.float32
        )
        - 1.0
    )


def uniform(key: jax.Array, n: int) -> jax.Array:
    """f32[n] on [0, 1), multiples of 2**-23, equal to `jax.random.uniform(key, (n,))`.

    See `random_bits`.
    """
    return to_uniform(random_bits(key, n))


def rounding_noise(key: jax.Array, n: int) -> jax.Array:
    """f32[n] on [0, 1), multiples of 2**-23, for stochastic rounding.

    Within 2**-16 of `uniform(key, n)`.

    The upper 16 bits of word i are those of `random_bits`. Below come the upper bits of
    a Weyl sequence with a random start, (start + i * 0x9E3779B9) mod 2**32, so that
    each number alone is exactly uniform; two of them depend on each other by less than
    2**-16 of a rounding step. Not for differential privacy: see `uniform`.
    """
    index = jax.lax.iota(jnp.uint32, n)
    return noise_of(_upper_halves(key, n), weyl_start(key), index)


def weyl_start(key: jax.Array) -> jax.Array:
    """u32[], made of a counter that `random_bits` never uses."""
    return threefry2x32(key_words(key), jnp.uint32(1), jnp.uint32(0))[0]


def noise_of(upper: jax.Array, start: jax.Array, index: jax.Array) -> jax.Array:
    """Number `index` of `rounding_noise` from the upper 16 bits of its word.

    Integers, u32[], u32 -> f32.
    """
    weyl = start + index * jnp.uint32(0x9E3779B9)
    return to_uniform((upper.astype(jnp.uint32) << 16) | (weyl >> 16))


_CHUNK = 2**14


def _upper_halves(key: jax.Array, n: int) -> jax.Array:
    """random_bits(key, n) >> 16; long ones on CPU as u16, by a loop of its own.

    XLA vectorises a loop by the widest type that it reads or writes. A hash is a chain
    of dependent steps, and in a loop of 16-bit numbers twice as many chains run side by
    side as in one that reads floats.
    """
    if n <= _CHUNK or not on_cpu():
        return random_bits(key, n) >> 16

    def chunk(i):
        return (
            random_bits_at(key, i * _CHUNK + jax.lax.iota(jnp.uint32, _CHUNK)) >> 16
        ).astype(jnp.uint16)

    return jax.lax.map(chunk, jax.lax.iota(jnp.uint32, -(-n // _CHUNK))).reshape(-1)[:n]
