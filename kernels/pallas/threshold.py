"""Selection with the row resident: one read of the data, then counts in the kernel."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from fedjax_fm.kernels.bisection import bisect_cut

_LANES, _SUBLANES = 128, 8
LONGEST = 2**20  # entries of a row: 4 MB of VMEM


def _kernel(k_ref, keys_ref, out_ref):
    """The cut of one row: the key in row 0 of the output, the last tie below."""
    keys = keys_ref[0]
    shape = keys.shape
    row = lax.broadcasted_iota(jnp.int32, shape, 0)
    column = lax.broadcasted_iota(jnp.int32, shape, 1)
    key, last = bisect_cut(keys, row * _LANES + column, k_ref[0, 0, 0])
    out_row = lax.broadcasted_iota(jnp.int32, (_SUBLANES, _LANES), 0)
    out_ref[0] = jnp.where(out_row == 0, key, last)


def cut_of_rows(
    keys: jax.Array, k: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The cut of every row, one program of the grid each.

    The idea of RTop-K: the row is read once, into VMEM, and the 62 counts of a
    bisection run there. Counts are sums of f32, exact to 2**24. Compiled for TPU v5e
    by `tests/aot`, never run there: the tests run it in interpret mode.

    Args:
      keys: u32[rows, n] below 2**31, 0 < n <= 2**20.
      k: i32[rows], how many to select.
      interpret: run as plain XLA, for tests.

    Returns:
      (key u32[rows], last i32[rows]): see `threshold_search.Cut`.

    Raises:
      ValueError: rows of another length.

    References:
      Xie et al., RTop-K, 2025, arXiv 2409.00822.
    """
    rows, n = keys.shape
    if not 0 < n <= LONGEST:
        raise ValueError(f"expected rows of 1 to {LONGEST} entries, got {n}")
    tile = _SUBLANES * _LANES
    padded = jnp.pad(
        lax.bitcast_convert_type(keys, jnp.int32),
        ((0, 0), (0, -n % tile)),
        constant_values=-1,
    )
    tiles = padded.reshape(rows, -1, _LANES)
    wanted = k.astype(jnp.int32)[:, None, None]
    wanted = jnp.broadcast_to(wanted, (rows, _SUBLANES, _LANES))
    found = pl.pallas_call(
        _kernel,
        grid=(rows,),
        in_specs=[
            pl.BlockSpec((1, _SUBLANES, _LANES), lambda row: (row, 0, 0)),
            pl.BlockSpec((1, *tiles.shape[1:]), lambda row: (row, 0, 0)),
        ],
        out_specs=pl.BlockSpec((1, _SUBLANES, _LANES), lambda row: (row, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((rows, _SUBLANES, _LANES), jnp.int32),
        interpret=interpret,
    )(wanted, tiles)
    return lax.bitcast_convert_type(found[:, 0, 0], jnp.uint32), found[:, 1, 0]
