"""How long entropy codes of a message would be, without writing them.

U32 bits (f32 for entropies), inside jit.

Sums are u32: good to 2^32 bits, half a gigabyte a message. fedjax_fm.channels.coding
writes the same codes for real.
"""

import jax
import jax.numpy as jnp

GOLDEN = 0.48121182505960347  # -ln((sqrt(5) - 1) / 2)


def log2_floor(k: jax.Array) -> jax.Array:
    """floor(log2 k) of u32[...] k >= 1: the place of the highest bit."""
    return jnp.uint32(31) - jax.lax.clz(jnp.asarray(k).astype(jnp.uint32))


def elias_gamma_length(k: jax.Array) -> jax.Array:
    """2 floor(log2 k) + 1 bits of k >= 1: u32[...] -> u32[...]."""
    return 2 * log2_floor(k) + 1


def elias_delta_length(k: jax.Array) -> jax.Array:
    """L + 2 floor(log2(L + 1)) + 1 bits of k >= 1, L = floor(log2 k)."""
    length = log2_floor(k)
    return length + 2 * log2_floor(length + 1) + 1


def elias_omega_length(k: jax.Array) -> jax.Array:
    """Bits of k >= 1 in the recursive code.

    A final zero, and L + 1 bits for each of k, L(k), L(L(k)), ... above 1.
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
    """The best number of low bits for the gaps of k marks among n: u32[].

    max(0, 1 + floor(log2(ln((sqrt 5 - 1) / 2) / ln(1 - k / n)))).

    References:
      Sattler et al., Sparse binary compression, 2018, arXiv 1805.08768, equation (15).
    """
    share = jnp.asarray(k, jnp.float32) / jnp.asarray(n, jnp.float32)
    share = jnp.clip(share, 1e-9, 1 - 1e-6)
    bits = 1 + jnp.floor(jnp.log2(GOLDEN / -jnp.log1p(-share)))
    return jnp.clip(bits, 0, 31).astype(jnp.uint32)


def gaps(mask: jax.Array) -> jax.Array:
    """bool[n] -> u32[n]: at a mark its distance to the mark before it (to -1 for the first).

    0 elsewhere.
    """
    places = jnp.arange(mask.shape[0], dtype=jnp.int32)
    last = jax.lax.cummax(jnp.where(mask, places, -1))
    before = jnp.concatenate([jnp.full(1, -1, jnp.int32), last[:-1]])
    return jnp.where(mask, places - before, 0).astype(jnp.uint32)


def rice_length(mask: jax.Array, low_bits: jax.Array | int) -> jax.Array:
    """Bits of the Rice code of a mask's gaps.

    The sum of b + 1 + floor((gap - 1) / 2^b). bool[n], u32[] -> u32[].
    """
    low_bits = jnp.asarray(low_bits).astype(jnp.uint32)
    distance = gaps(mask)
    one = low_bits + 1 + ((distance - 1) >> low_bits)
    return jnp.sum(jnp.where(mask, one, 0), dtype=jnp.uint32)


def run_level_length(codes: jax.Array, code: str = "gamma") -> jax.Array:
    """Bits of QSGD's sparse code: for every code that is not zero its gap, its sign and its level.

    Args:
      codes: int[n], signed levels.
      code: "gamma", "delta" or "omega" (the paper's), for gaps and levels.

    Returns:
      u32[], without the norm.

    References:
      Alistarh et al., QSGD, 2017, arXiv 1610.02132, section 3.2.
    """
    if code not in LENGTHS:
        raise ValueError(f"expected code 'gamma', 'delta' or 'omega', got {code!r}")
    length, mask = LENGTHS[code], codes != 0
    level = jnp.abs(codes.astype(jnp.int32)).astype(jnp.uint32)
    one = length(jnp.maximum(gaps(mask), 1)) + 1 + length(jnp.maximum(level, 1))
    return jnp.sum(jnp.where(mask, one, 0), dtype=jnp.uint32)


def symbol_counts(codes: jax.Array, n_symbols: int) -> jax.Array:
    """How often each symbol below n_symbols occurs: unsigned[n] -> u32[n_symbols]."""
    codes = codes.reshape(-1)
    if n_symbols <= 16:  # comparing is faster than scattering for few symbols
        return jnp.stack(
            [jnp.sum(codes == s, dtype=jnp.uint32) for s in range(n_symbols)]
        )
    return jnp.zeros(n_symbols, jnp.uint32).at[codes].add(jnp.uint32(1), mode="drop")


def entropy_bits(counts: jax.Array) -> jax.Array:
    """N H of an empirical distribution, sum c log2(n / c).

    U32[m] -> f32[]; an absent symbol adds nothing.
    """
    c = counts.astype(jnp.float32)
    return jnp.sum(jnp.where(c > 0, c * jnp.log2(jnp.sum(c) / jnp.maximum(c, 1)), 0.0))


def mask_entropy_bits(mask: jax.Array) -> jax.Array:
    """N H2(p), p the share of ones: bool[...] -> f32[]."""
    ones = jnp.sum(mask, dtype=jnp.uint32)
    return entropy_bits(jnp.stack([ones, jnp.uint32(mask.size) - ones]))
