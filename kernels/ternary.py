"""Three symbols an entry, five to a byte: 1.6 bits where log2(3) = 1.585 would be the least."""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.quantize import stochastic_quantize

PER_BYTE = 5  # 3^5 = 243


def ternary_encode(x: jax.Array, key: jax.Array, norm: str = "max") -> tuple[jax.Array, jax.Array]:
    """DIANA's p-quantisation of one block: ||x||_p sign(x_i) Bernoulli(|x_i| / ||x||_p).

    Unbiased; E||Q(x) - x||^2 = ||x||_1 ||x||_p - ||x||^2 and E||Q(x)||_0 = ||x||_1 / ||x||_p, both exactly.

    Args:
      x: f32[m].
      key: consumed; one number an entry.
      norm: "max" (p = infinity) or "l2".

    Returns:
      (i8[m] in {-1, 0, 1}, f32[] norm).

    References:
      Mishchenko et al., DIANA, 2019, arXiv 1901.09269, definition 1.
    """
    return stochastic_quantize(x, key, 1, norm)


def pack_trits(codes: jax.Array) -> jax.Array:
    """Base 3, first digit lowest: unsigned[n] below 3 -> u8[ceil(n / 5)].

    Example:
      >>> import jax.numpy as jnp
      >>> pack_trits(jnp.array([1, 2, 0, 0, 0, 2])).tolist()
      [7, 2]
    """
    groups = jnp.pad(codes.astype(jnp.uint8), (0, -codes.shape[0] % PER_BYTE)).reshape(-1, PER_BYTE)
    value = groups[:, PER_BYTE - 1]
    for place in reversed(range(PER_BYTE - 1)):
        value = value * jnp.uint8(3) + groups[:, place]
    return value


def unpack_trits(packed: jax.Array, n: int) -> jax.Array:
    """The inverse of `pack_trits`: u8[ceil(n / 5)] -> u8[n]."""
    if packed.shape != (-(-n // PER_BYTE),):
        raise ValueError(
            f"{n} codes of 3 symbols take {-(-n // PER_BYTE)} bytes, got a buffer of shape {packed.shape}: "
            "the payload is truncated or belongs to another shape"
        )
    digits = [packed // jnp.uint8(3**place) % jnp.uint8(3) for place in range(PER_BYTE)]
    return jnp.stack(digits, axis=1).reshape(-1)[:n]
