"""Masks, scores, schedules and packing of pruned weights: pure functions on trees.

A mask, like a score, is a dict by the dotted paths of the leaves that are pruned, so
that it lies beside any trainable tree and travels as bits.
"""

from fedjax_fm.sparsity.layers import Layers, put
from fedjax_fm.sparsity.masks import (
    check_density,
    densities,
    full_masks,
    iterated_counts,
    kept_count,
    masked,
    nonzero_masks,
    ranked_within,
    top_masks,
    top_of_all,
    top_of_layers,
    top_of_vectors,
    with_one_each,
)
from fedjax_fm.sparsity.packing import (
    PackedMasks,
    pack_kept,
    pack_masks,
    unpack_kept,
    unpack_masks,
)
from fedjax_fm.sparsity.schedules import cosine_share, cubic
from fedjax_fm.sparsity.scores import (
    block_means,
    block_shape,
    check_block,
    expand_blocks,
    magnitude,
    random,
    score_penalty,
    sigmoid_masks,
    straight_through,
)
from fedjax_fm.sparsity.vector_wise import (
    Packed,
    pack_vector_wise,
    pattern_bits,
    unpack_vector_wise,
    vector_wise_mask,
)

__all__ = [
    "Layers",
    "Packed",
    "PackedMasks",
    "block_means",
    "block_shape",
    "check_block",
    "check_density",
    "cosine_share",
    "cubic",
    "densities",
    "expand_blocks",
    "full_masks",
    "iterated_counts",
    "kept_count",
    "magnitude",
    "masked",
    "nonzero_masks",
    "pack_kept",
    "pack_masks",
    "pack_vector_wise",
    "pattern_bits",
    "put",
    "random",
    "ranked_within",
    "score_penalty",
    "sigmoid_masks",
    "straight_through",
    "top_masks",
    "top_of_all",
    "top_of_layers",
    "top_of_vectors",
    "unpack_kept",
    "unpack_masks",
    "unpack_vector_wise",
    "vector_wise_mask",
    "with_one_each",
]
