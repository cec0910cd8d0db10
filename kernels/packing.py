"""Dense packing of small unsigned codes into bytes.

Eight codes of b bits fill exactly b bytes, so a group of eight is the unit; code j of a
group takes the bits [j*b, (j+1)*b) of the group's little-endian bit string. The last
group is cut after its last used byte.
"""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.arguments import whole


def packed_length(n: int, bits: int) -> int:
    """Bytes that n codes of `bits` bits take: ceil(n * bits / 8)."""
    return -(-n * bits // 8)


# Codes of 2, 4 and 8 bits that make up a byte lie in one word of this type, a byte
# each: shifts of the word join them, eight times faster on CPU than picking them out
# one by one.
_WORDS = {2: jnp.uint32, 4: jnp.uint16, 8: jnp.uint8}


def _fold(codes: jax.Array, bits: int) -> jax.Array:
    """u8[m * 8 / bits], all below 2**bits -> u8[m]."""
    words = codes.view(_WORDS[bits])
    folded = words
    for j in range(1, 8 // bits):
        folded = folded | words >> (8 - bits) * j
    return folded.astype(jnp.uint8)


def pack_bits(codes: jax.Array, bits: int) -> jax.Array:
    """Packs codes below 2**bits.

    Unsigned[n] (or bool[n]) -> u8[ceil(n * bits / 8)]; higher bits are cut off.

    Example:
          >>> import jax.numpy as jnp

    from fedjax_fm.kernels.arguments import whole
          >>> pack_bits(jnp.array([1, 2, 3]), 4).tolist()
          [33, 3]
    """
    whole("bits", bits, least=1, most=32)
    n = codes.shape[0]
    if bits in _WORDS:
        return _fold(
            jnp.pad(
                jnp.asarray(codes).astype(jnp.uint8) & jnp.uint8(2**bits - 1),
                (0, -n % (8 // bits)),
            ),
            bits,
        )
    codes = jnp.asarray(codes).astype(jnp.uint32)
    if bits < 32:
        codes = codes & jnp.uint32((1 << bits) - 1)
    groups = jnp.pad(codes, (0, -n % 8)).reshape(-1, 8)
    columns = []
    for byte in range(bits):
        value = jnp.zeros(groups.shape[0], jnp.uint32)
        for j in range(8):
            shift = j * bits - byte * 8  # where code j starts, seen from this byte
            if -bits < shift < 8:
                code = groups[:, j]
                value = value | (code << shift if shift >= 0 else code >> -shift)
        columns.append((value & 0xFF).astype(jnp.uint8))
    return jnp.stack(columns, axis=1).reshape(-1)[: packed_length(n, bits)]


def unpack_bits(packed: jax.Array, bits: int, n: int) -> jax.Array:
    """The inverse of `pack_bits`: u8[ceil(n * bits / 8)] -> u32[n]."""
    whole("bits", bits, least=1, most=32)
    if packed.shape != (packed_length(n, bits),):
        raise ValueError(
            f"{n} codes of {bits} bits take {packed_length(n, bits)} bytes, got a "
            f"buffer of shape {packed.shape}: the payload is truncated or belongs "
            "to another shape"
        )
    if bits == 8:
        return packed.astype(jnp.uint32)
    if bits == 4:
        pairs = packed.astype(jnp.uint16)
        return ((pairs | pairs << 4) & 0x0F0F).view(jnp.uint8)[:n].astype(jnp.uint32)
    n_groups = -(-n // 8)
    group_bytes = (
        jnp.pad(packed, (0, n_groups * bits - packed.shape[0]))
        .reshape(n_groups, bits)
        .astype(jnp.uint32)
    )
    columns = []
    for j in range(8):
        value = jnp.zeros(n_groups, jnp.uint32)
        for byte in range(bits):
            shift = j * bits - byte * 8
            if -bits < shift < 8:
                piece = group_bytes[:, byte]
                value = value | (piece >> shift if shift >= 0 else piece << -shift)
        columns.append(value if bits == 32 else value & jnp.uint32((1 << bits) - 1))
    return jnp.stack(columns, axis=1).reshape(-1)[:n]
