"""Dense packing of small unsigned codes into bytes.

Eight codes of b bits fill exactly b bytes, so a group of eight is the unit; code j of a
group takes the bits [j*b, (j+1)*b) of the group's little-endian bit string. The last
group is cut after its last used byte.
"""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.arguments import whole


def packed_length(n: int, bits: int) -> int:
    """Bytes of packed codes: ceil(n * bits / 8).

    Args:
      n: codes.
      bits: width of a code.
    """
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
    """Packs codes of `bits` bits into bytes; higher bits are cut off.

    Args:
      codes: unsigned[n] or bool[n].
      bits: width of a code, 1 to 32.

    Returns:
      u8[ceil(n * bits / 8)].

    Example:
      >>> import jax.numpy as jnp
      >>> pack_bits(jnp.array([1, 2, 3]), 4).tolist()
      [33, 3]
    """
    whole("bits", bits, least=1, most=32)
    n = codes.shape[0]
    if bits in _WORDS:
        octets = jnp.asarray(codes).astype(jnp.uint8) & jnp.uint8(2**bits - 1)
        padded = jnp.pad(octets, (0, -n % (8 // bits)))
        return _fold(padded, bits)
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
    packed = jnp.stack(columns, axis=1).reshape(-1)
    return packed[: packed_length(n, bits)]


def unpack_bits(packed: jax.Array, bits: int, n: int) -> jax.Array:
    """The inverse of `pack_bits`: u32[n].

    Args:
      packed: u8[ceil(n * bits / 8)].
      bits: width of a code, 1 to 32.
      n: codes.

    Raises:
      ValueError: `packed` has another length.

    Example:
      >>> import jax.numpy as jnp
      >>> unpack_bits(jnp.array([33, 3], jnp.uint8), 4, 3).tolist()
      [1, 2, 3]
    """
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
        codes = ((pairs | pairs << 4) & 0x0F0F).view(jnp.uint8)
        return codes[:n].astype(jnp.uint32)
    n_groups = -(-n // 8)
    padded = jnp.pad(packed, (0, n_groups * bits - packed.shape[0]))
    group_bytes = padded.reshape(n_groups, bits).astype(jnp.uint32)
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
