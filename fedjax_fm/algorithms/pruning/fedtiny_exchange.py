"""FedTiny's exchange of entries in one layer: what is reported, what comes and goes.

Huang, Zhang, Sun, Fang, Yuan, Wu, 2022, arXiv 2212.01977, progressive pruning.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.pruning.fedtiny_plan import LayerPlan
from fedjax_fm.channels.buffers import index_bits
from fedjax_fm.kernels import mask_indices, pack_bits, top_k_mask, unpack_bits
from fedjax_fm.types import Rows


class Largest(NamedTuple):
    """The largest gradients of a layer's pruned entries, as they travel.

    Their number is known at both ends.

    Attributes:
      values: `Rows` f32[most].
      places: `Rows` u8[...], numbers of ceil(log2 n) bits, ascending.
    """

    values: Rows
    places: Rows


def largest_of_pruned(
    gradient: jax.Array, mask: jax.Array, count: jax.Array, plan: LayerPlan
) -> Largest:
    """The gradients of largest magnitude among the pruned entries.

    Beside the gradient itself it holds no more than `most` numbers.

    Args:
      gradient: of the layer, dense.
      mask: bool, what is kept.
      count: i32[], how many, at most `plan.most`.
      plan: of the layer.
    """
    pruned = jnp.where(mask, 0, gradient).reshape(-1)
    # A pruned entry of gradient 0 ranks above one that is kept.
    size = jnp.where(mask.reshape(-1), 0, jnp.abs(pruned) + 1e-37)
    places = mask_indices(top_k_mask(size, count), plan.most)
    is_sent = jnp.arange(plan.most) < count
    places = jnp.where(is_sent, places, 0)
    values = jnp.where(is_sent, pruned[places], 0)
    width = index_bits(plan.n)
    packed = pack_bits(places.astype(jnp.uint32), width)
    n_bytes = (count * width + 7) // 8
    return Largest(Rows(values, count), Rows(packed, n_bytes.astype(jnp.int32)))


def spread(largest: Largest, plan: LayerPlan) -> jax.Array:
    """The reported gradients at their places, f32[n], zeros elsewhere.

    Args:
      largest: as it travelled.
      plan: of the layer.
    """
    if plan.most == 0:
        return jnp.zeros(plan.n)
    places = unpack_bits(largest.places.values, index_bits(plan.n), plan.most)
    is_sent = jnp.arange(plan.most) < largest.values.count
    places = jnp.where(is_sent, places.astype(jnp.int32), plan.n)
    return jnp.zeros(plan.n).at[places].add(largest.values.values, mode="drop")


def grown_and_dropped(
    weight: jax.Array, mask: jax.Array, gradient: jax.Array, count: jax.Array
) -> jax.Array:
    """The mask with some entries exchanged: as many stay as before.

    Args:
      weight: of the layer.
      mask: bool, of its shape.
      gradient: f32[n], the mean gradient of pruned entries.
      count: i32[], how many are exchanged.
    """
    flags = mask.reshape(-1)
    size = jnp.abs(gradient)
    grown = top_k_mask(jnp.where(flags, 0, size + 1e-37), count)
    kept = jnp.sum(flags, dtype=jnp.int32)
    # What stays of the kept ones: all but the smallest, zeros among them.
    size = jnp.abs(weight.reshape(-1)) + 1e-37
    stays = top_k_mask(jnp.where(flags, size, 0), kept - count)
    return (stays | grown).reshape(mask.shape)
