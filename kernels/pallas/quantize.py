"""QSGD with threefry inside the kernel: the noise never touches memory."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from fedjax_fm.kernels.arguments import whole
from fedjax_fm.kernels.quantize import level_distance, signed_codes
from fedjax_fm.kernels.random_bits import key_words, noise_of, threefry2x32, weyl_start

_LANES, _SUBLANES = 128, 32  # a tile of int8


def _kernel(words_ref, scale_ref, x_ref, codes_ref, *, levels):
    """Codes of one block; the words are the key and the start of the Weyl sequence."""
    shape = x_ref.shape
    # By the place in the whole vector: the numbers do not depend on how it is cut.
    first = pl.program_id(0) * (shape[0] * shape[1])
    row = lax.broadcasted_iota(jnp.int32, shape, 0)
    column = lax.broadcasted_iota(jnp.int32, shape, 1)
    place = row * shape[1] + column + first
    low = lax.bitcast_convert_type(place, jnp.uint32)
    a, b = threefry2x32((words_ref[0, 0], words_ref[1, 0]), jnp.zeros_like(low), low)
    noise = noise_of((a ^ b) >> 16, words_ref[2, 0], low)
    codes = signed_codes(x_ref[...], scale_ref[0, 0], noise, levels)
    codes_ref[...] = codes.astype(jnp.int8)


def stochastic_quantize_blocks(
    x: jax.Array,
    key: jax.Array,
    levels: int = 7,
    norm: str = "l2",
    block_rows: int = 512,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`kernels.stochastic_quantize` in blocks of block_rows * 128 entries.

    The same codes for every block size. The norm is plain XLA. Not yet compiled for a
    TPU or GPU: the tests run it in interpret mode.

    Args:
      x: f32[n].
      key: a threefry key, consumed.
      levels: on each side of zero, 1 to 127.
      norm: "l2" or "max".
      block_rows: a positive multiple of 32.
      interpret: run as plain XLA, for tests.

    Returns:
      (codes int8[n], scale f32[]).

    Raises:
      ValueError: `levels` or `block_rows` is none of these.
    """
    whole("levels", levels, least=1, most=127)
    if block_rows < 1 or block_rows % _SUBLANES:
        raise ValueError(
            f"expected a positive multiple of {_SUBLANES}, got block_rows={block_rows}"
        )
    x = jnp.asarray(x, jnp.float32)
    n = x.shape[0]
    scale = level_distance(x, norm, levels)
    n_blocks = max(1, -(-n // (block_rows * _LANES)))
    blocks = jnp.pad(x, (0, n_blocks * block_rows * _LANES - n)).reshape(-1, _LANES)
    tile = (_SUBLANES, _LANES)
    words = jnp.stack([*key_words(key), weyl_start(key)])
    words = jnp.broadcast_to(words.reshape(3, 1), (3, _LANES))
    codes = pl.pallas_call(
        lambda *refs: _kernel(*refs, levels=levels),
        grid=(n_blocks,),
        in_specs=[
            pl.BlockSpec(tile, lambda i: (0, 0)),
            pl.BlockSpec(tile, lambda i: (0, 0)),
            pl.BlockSpec((block_rows, _LANES), lambda i: (i, 0)),
        ],
        out_specs=pl.BlockSpec((block_rows, _LANES), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct(blocks.shape, jnp.int8),
        interpret=interpret,
    )(
        jnp.pad(words, ((0, _SUBLANES - 3), (0, 0))),
        jnp.broadcast_to(scale, tile),
        blocks,
    )
    return codes.reshape(-1)[:n], scale
