"""Array kernels: arrays in, arrays out; nothing but jax is imported here.

Installed as `fedjax_fm.kernels`; the top-level name `kernels` belongs to another
project. Functions of arrays are pure, for use inside `jax.jit`. Shapes are written as
`f32[n]`; with `f32[..., m]` a function works on the last axis.
"""

if __name__ != "fedjax_fm.kernels":
    from .other_name import give_way

    give_way(__name__)
else:
    from .block_formats import int_block_encode, nf4_decode, nf4_encode
    from .code_lengths import (
        elias_delta_length,
        elias_gamma_length,
        elias_omega_length,
        entropy_bits,
        mask_entropy_bits,
        rice_length,
        rice_parameter,
        run_level_length,
        symbol_counts,
    )
    from .compaction import mask_indices, mask_words
    from .dense import dense
    from .hadamard import rotate, rotate_back, rotated_length, walsh_hadamard
    from .lloyd_max import lloyd_max_encode, lloyd_max_values
    from .masks import bernoulli_mask, block_mask, random_k_mask, threshold_mask
    from .natural import natural_decode, natural_encode
    from .nnadq import from_planes, nnadq_decode, nnadq_encode, nnadq_width, to_planes
    from .packing import pack_bits, packed_length, unpack_bits
    from .quantize import (
        stochastic_quantize,
        stochastic_quantize_buckets,
        uniform_dequantize,
        uniform_quantize,
    )
    from .random_bits import random_bits, random_bits_at, rounding_noise, uniform
    from .selection import kth_largest_key, top_k_cut, top_k_mask, top_k_masks
    from .sign import sign_decode, sign_encode
    from .sparse_quantize import (
        SparseCodes,
        sparse_codes,
        sparse_decode,
        sparse_quantize,
    )
    from .symbols import pack_symbols, symbols_per_byte, unpack_symbols
    from .ternary import ternary_encode

__all__ = [
    "SparseCodes",
    "bernoulli_mask",
    "block_mask",
    "dense",
    "elias_delta_length",
    "elias_gamma_length",
    "elias_omega_length",
    "entropy_bits",
    "from_planes",
    "int_block_encode",
    "kth_largest_key",
    "lloyd_max_encode",
    "lloyd_max_values",
    "mask_entropy_bits",
    "mask_indices",
    "mask_words",
    "natural_decode",
    "natural_encode",
    "nf4_decode",
    "nf4_encode",
    "nnadq_decode",
    "nnadq_encode",
    "nnadq_width",
    "pack_bits",
    "pack_symbols",
    "packed_length",
    "random_bits",
    "random_bits_at",
    "random_k_mask",
    "rice_length",
    "rice_parameter",
    "rotate",
    "rotate_back",
    "rotated_length",
    "rounding_noise",
    "run_level_length",
    "sign_decode",
    "sign_encode",
    "sparse_codes",
    "sparse_decode",
    "sparse_quantize",
    "stochastic_quantize",
    "stochastic_quantize_buckets",
    "symbol_counts",
    "symbols_per_byte",
    "ternary_encode",
    "threshold_mask",
    "to_planes",
    "top_k_cut",
    "top_k_mask",
    "top_k_masks",
    "uniform",
    "uniform_dequantize",
    "uniform_quantize",
    "unpack_bits",
    "unpack_symbols",
    "walsh_hadamard",
]
