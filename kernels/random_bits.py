"""Random words of jax.random, bit for bit, as arithmetic that fuses with its consumers.

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
    """The Threefry-2x32 block cipher, 20 rounds: two words of u32[...].

    Args:
      key: two words, u32[].
      high: u32[...], upper word of the counter.
      low: u32[...], lower word of the counter.

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
    """The two u32[] words of a threefry key.

    Args:
      key: typed, or raw u32[2].

    Raises:
      ValueError: a key of another kind, or several.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(key)) not in ("threefry2x32", "fry"):
            raise ValueError(
                f"expected a threefry2x32 key, got one of {jax.random.key_impl(key)}"
            )
        key = jax.random.key_data(key)
    if key.shape != (2,) or key.dtype != jnp.uint32:
        raise ValueError(
            f"expected one threefry2x32 key, got {key.dtype}{list(key.shape)} of key "
            "words"
        )
    return key[0], key[1]


def random_bits_at(key: jax.Array, index: jax.Array) -> jax.Array:
    """Words of a key's endless stream, u32[...], equal to random_bits(key, n)[index].

    Args:
      key: a threefry key.
      index: u32[...], which words.
    """
    index = jnp.asarray(index).astype(jnp.uint32)
    words = key_words(key)
    high, low = threefry2x32(words, jnp.zeros_like(index), index)
    return high ^ low


def random_bits(key: jax.Array, n: int) -> jax.Array:
    """u32[n], equal to `jax.random.bits(key, (n,))`.

    That is in the partitionable layout, the default since jax 0.5. A longer draw begins
    with the shorter one. Good for rounding and masks, and, being threefry, for the
    noise of differential privacy.

    Args:
      key: a threefry key, consumed. The words of other kinds differ between backends
        and under vmap.
      n: words, at most 2**32.

    Raises:
      ValueError: a key of another kind.

    Example:
      >>> import jax
      >>> key = jax.random.key(0)
      >>> bool((random_bits(key, 5) == jax.random.bits(key, (5,))).all())
      True
    """
    whole("n", n, least=0, most=2**32)
    return random_bits_at(key, jax.lax.iota(jnp.uint32, n))


def to_uniform(bits: jax.Array) -> jax.Array:
    """f32[...] on [0, 1): the upper 23 bits as a fraction, as in jax.random.uniform.

    Args:
      bits: u32[...].
    """
    words = (bits >> jnp.uint32(9)) | jnp.uint32(0x3F800000)  # on [1, 2)
    return jax.lax.bitcast_convert_type(words, jnp.float32) - 1.0


def uniform(key: jax.Array, n: int) -> jax.Array:
    """f32[n] on [0, 1), multiples of 2**-23, equal to `jax.random.uniform(key, (n,))`.

    Args:
      key: a threefry key, consumed.
      n: numbers, at most 2**32.
    """
    return to_uniform(random_bits(key, n))


def rounding_noise(key: jax.Array, n: int) -> jax.Array:
    """f32[n] on [0, 1), multiples of 2**-23, for stochastic rounding.

    Within 2**-16 of `uniform(key, n)`. The upper 16 bits of word i are those of
    `random_bits`. Below come the upper bits of a Weyl sequence with a random start,
    (start + i * 0x9E3779B9) mod 2**32, so that each number alone is exactly uniform;
    two of them depend on each other by less than 2**-16 of a rounding step. Not for
    differential privacy: see `uniform`.

    Args:
      key: a threefry key, consumed.
      n: numbers, at most 2**32.
    """
    index = jax.lax.iota(jnp.uint32, n)
    upper = _upper_halves(key, n)
    return noise_of(upper, weyl_start(key), index)


def weyl_start(key: jax.Array) -> jax.Array:
    """u32[], made of a counter that `random_bits` never uses.

    Args:
      key: a threefry key.
    """
    words = key_words(key)
    return threefry2x32(words, jnp.uint32(1), jnp.uint32(0))[0]


def noise_of(upper: jax.Array, start: jax.Array, index: jax.Array) -> jax.Array:
    """Numbers of `rounding_noise` from the upper 16 bits of their words, f32[...].

    Args:
      upper: integers [...], those bits.
      start: u32[], see `weyl_start`.
      index: u32[...], which numbers.
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
        index = i * _CHUNK + jax.lax.iota(jnp.uint32, _CHUNK)
        return (random_bits_at(key, index) >> 16).astype(jnp.uint16)

    chunks = jax.lax.map(chunk, jax.lax.iota(jnp.uint32, -(-n // _CHUNK)))
    return chunks.reshape(-1)[:n]
