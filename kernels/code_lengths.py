"""Lengths of entropy codes of a message, inside jit, without writing the codes.

Bits as u32 (f32 for entropies), good to 2^32 bits, half a gigabyte a message.
`fedjax_fm.channels.prefix_codes` writes the same codes for real.
"""

import jax
import jax.numpy as jnp

GOLDEN = 0.48121182505960347  # -ln((sqrt(5) - 1) / 2)


def log2_floor(k: jax.Array) -> jax.Array:
    """floor(log2 k): the place of the highest bit, u32[...].

    Args:
      k: u32[...], at least 1.
    """
    k = jnp.asarray(k).astype(jnp.uint32)
    return jnp.uint32(31) - jax.lax.clz(k)


def elias_gamma_length(k: jax.Array) -> jax.Array:
    """Bits of Elias's gamma code: 2 floor(log2 k) + 1, u32[...].

    Args:
      k: u32[...], numbers of at least 1.
    """
    return 2 * log2_floor(k) + 1


def elias_delta_length(k: jax.Array) -> jax.Array:
    """Bits of Elias's delta code, u32[...].

    L + 2 floor(log2(L + 1)) + 1, where L = floor(log2 k).

    Args:
      k: u32[...], numbers of at least 1.
    """
    length = log2_floor(k)
    return length + 2 * log2_floor(length + 1) + 1


def elias_omega_length(k: jax.Array) -> jax.Array:
    """Bits of Elias's omega code, which is recursive, u32[...].

    A final zero, and L + 1 bits for each of k, L(k), L(L(k)), ... above 1.

    Args:
      k: u32[...], numbers of at least 1.
    """
    k = jnp.asarray(k).astype(jnp.uint32)
    total = jnp.ones_like(k)
    for _ in range(5):  # enough for 32 bits: 2^32 - 1, 31, 4, 2, 1
        length = log2_floor(jnp.maximum(k, 1))
        total = total + jnp.where(k > 1, length + 1, 0)
        k = jnp.where(k > 1, length, 1)
    return total


LENGTHS = {
    "gamma": elias_gamma_length,
    "delta": elias_delta_length,
    "omega": elias_omega_length,
}


def rice_parameter(n: jax.Array | int, k: jax.Array | int) -> jax.Array:
    """The best number of low bits for the gaps between k marks among n places, u32[].

        max(0, 1 + floor(log2(ln((sqrt 5 - 1) / 2) / ln(1 - k / n))))

    Args:
      n: places, int or i32[].
      k: marks, int or i32[].

    References:
      Sattler et al., Sparse binary compression, 2018, arXiv 1805.08768, equation 15.
    """
    share = jnp.asarray(k, jnp.float32) / jnp.asarray(n, jnp.float32)
    share = jnp.clip(share, 1e-9, 1 - 1e-6)
    exponent = jnp.log2(GOLDEN / -jnp.log1p(-share))
    bits = 1 + jnp.floor(exponent)
    return jnp.clip(bits, 0, 31).astype(jnp.uint32)


def gaps(mask: jax.Array) -> jax.Array:
    """u32[n]: at a mark its distance to the mark before it, elsewhere 0.

    The first mark has its distance to place -1.

    Args:
      mask: bool[n].
    """
    places = jnp.arange(mask.shape[0], dtype=jnp.int32)
    last = jax.lax.cummax(jnp.where(mask, places, -1))
    before = jnp.concatenate([jnp.full(1, -1, jnp.int32), last[:-1]])
    return jnp.where(mask, places - before, 0).astype(jnp.uint32)


def rice_length(mask: jax.Array, low_bits: jax.Array | int) -> jax.Array:
    """Bits of the Rice code of a mask's gaps.

    The sum over gaps of b + 1 + floor((gap - 1) / 2^b).

    Args:
      mask: bool[n].
      low_bits: b, int or u32[], see `rice_parameter`.

    Returns:
      u32[].
    """
    low_bits = jnp.asarray(low_bits).astype(jnp.uint32)
    distance = gaps(mask)
    one = low_bits + 1 + ((distance - 1) >> low_bits)
    return jnp.sum(jnp.where(mask, one, 0), dtype=jnp.uint32)


def run_level_length(codes: jax.Array, code: str = "gamma") -> jax.Array:
    """Bits of QSGD's sparse code: gap, sign and level of every code that is not zero.

    Args:
      codes: int[n], signed levels.
      code: "gamma", "delta" or "omega" (the paper's), for gaps and levels.

    Returns:
      u32[], without the norm.

    Raises:
      ValueError: another `code`.

    References:
      Alistarh et al., QSGD, 2017, arXiv 1610.02132, section 3.2.
    """
    if code not in LENGTHS:
        raise ValueError(f"expected code 'gamma', 'delta' or 'omega', got {code!r}")
    length, mask = LENGTHS[code], codes != 0
    magnitude = jnp.abs(codes.astype(jnp.int32))
    level = magnitude.astype(jnp.uint32)
    of_gap = length(jnp.maximum(gaps(mask), 1))
    of_level = length(jnp.maximum(level, 1))
    one = of_gap + 1 + of_level
    return jnp.sum(jnp.where(mask, one, 0), dtype=jnp.uint32)


def symbol_counts(codes: jax.Array, n_symbols: int) -> jax.Array:
    """How often each symbol occurs, u32[n_symbols].

    Args:
      codes: unsigned[n], below `n_symbols`.
      n_symbols: size of the alphabet.
    """
    codes = codes.reshape(-1)
    if n_symbols <= 16:  # comparing is faster than scattering for few symbols
        counts = [jnp.sum(codes == s, dtype=jnp.uint32) for s in range(n_symbols)]
        return jnp.stack(counts)
    counts = jnp.zeros(n_symbols, jnp.uint32)
    return counts.at[codes].add(jnp.uint32(1), mode="drop")


def entropy_bits(counts: jax.Array) -> jax.Array:
    """Entropy of n symbols, n H = sum_s c_s log2(n / c_s), f32[].

    Args:
      counts: u32[m], c; an absent symbol adds nothing.
    """
    c = counts.astype(jnp.float32)
    information = jnp.log2(jnp.sum(c) / jnp.maximum(c, 1))
    return jnp.sum(jnp.where(c > 0, c * information, 0.0))


def mask_entropy_bits(mask: jax.Array) -> jax.Array:
    """Entropy of a mask of n flags, n H2(p), p its share of ones, f32[].

    Args:
      mask: bool[...], n entries.
    """
    ones = jnp.sum(mask, dtype=jnp.uint32)
    zeros = jnp.uint32(mask.size) - ones
    return entropy_bits(jnp.stack([ones, zeros]))
