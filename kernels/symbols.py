"""Codes of a base that is no power of two, several to a byte."""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.arguments import whole


def symbols_per_byte(base: int) -> int:
    """How many codes below `base` one byte holds: the largest m with base**m <= 256.

    Args:
      base: size of the alphabet, 2 to 256.
    """
    whole("base", base, least=2, most=256)
    m = 1
    while base ** (m + 1) <= 256:
        m += 1
    return m


def pack_symbols(codes: jax.Array, base: int) -> jax.Array:
    """Packs codes below `base`, m = symbols_per_byte(base) in a byte.

        byte_j = sum over i < m of codes[j m + i] * base**i

    Codes past the end count as 0. Base 3 takes 1.6 bits an entry where log2(3) is
    1.585. Codes of 2s + 1 levels are shifted by s first. From base 17 on a byte holds
    one code.

    Args:
      codes: unsigned[n].
      base: size of the alphabet, 2 to 256.

    Returns:
      u8[ceil(n / m)].

    Example:
      >>> import jax.numpy as jnp
      >>> pack_symbols(jnp.array([2, 1, 0, 0, 1, 2]), 3).tolist()
      [86, 2]
    """
    m = symbols_per_byte(base)
    n = codes.shape[0]
    codes = jnp.asarray(codes).astype(jnp.uint32)
    columns = jnp.pad(codes, (0, -n % m)).reshape(-1, m)
    weights = jnp.array([base**i for i in range(m)], jnp.uint32)
    return jnp.sum(columns * weights[None], axis=1, dtype=jnp.uint32).astype(jnp.uint8)


def unpack_symbols(packed: jax.Array, base: int, n: int) -> jax.Array:
    """The inverse of `pack_symbols`: u32[n].

    Args:
      packed: u8[ceil(n / m)]; bytes of base**m or more do not occur.
      base: size of the alphabet, 2 to 256.
      n: codes.

    Raises:
      ValueError: `packed` has another length.
    """
    m = symbols_per_byte(base)
    if packed.shape != (-(-n // m),):
        raise ValueError(
            f"{n} codes of base {base} take {-(-n // m)} bytes, got a buffer of "
            f"shape {packed.shape}: the payload is truncated or belongs to "
            "another shape"
        )
    octets = packed.astype(jnp.uint32)
    symbols = jnp.uint32(base)
    columns = [octets // jnp.uint32(base**i) % symbols for i in range(m)]
    return jnp.stack(columns, axis=1).reshape(-1)[:n]
