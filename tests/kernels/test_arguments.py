"""What no number may be that a kernel is given beside its arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_values import Row, cases, is_refused

from fedjax_fm import kernels

KEY = jax.random.key(0)
X = jnp.arange(8.0)
CODES = jnp.arange(8, dtype=jnp.uint32)


def named(name, function, *arguments, **kinds):
    """A row of a function whose first arguments are arrays."""

    def make(**given):
        return function(*arguments, **given)

    good = {
        "bits": 4,
        "levels": 7,
        "bucket_size": 4,
        "base": 3,
        "n": 8,
        "k": 2,
        "block_size": 2,
        "block": 128,
        "turns": 1,
    }
    return Row(make, {parameter: good[parameter] for parameter in kinds}, kinds, name)


def sparse(k, bits, bucket_size):
    return kernels.sparse_codes(X, k, bits, KEY, "max", bucket_size)


def packed(bits):
    return kernels.unpack_bits(kernels.pack_bits(CODES, 4), bits, 8)


def symbols(base):
    return kernels.unpack_symbols(kernels.pack_symbols(CODES % 3, 3), base, 8)


def rotated(block, turns):
    return kernels.rotate(X, jnp.uint32(0), block, turns)


def rotated_back(block, turns):
    return kernels.rotate_back(jnp.zeros(128), jnp.uint32(0), 8, block, turns)


ROWS = [
    named("stochastic_quantize", kernels.stochastic_quantize, X, KEY, levels="whole"),
    named(
        "stochastic_quantize_buckets",
        kernels.stochastic_quantize_buckets,
        X,
        KEY,
        levels="whole",
        bucket_size="whole",
    ),
    named("uniform_quantize", kernels.uniform_quantize, X, KEY, bits="whole"),
    Row(
        sparse,
        {"k": 3, "bits": 4, "bucket_size": 4},
        {"k": "whole", "bits": "whole", "bucket_size": "whole"},
    ),
    named("int_block_encode", kernels.int_block_encode, X, bits="whole"),
    named("lloyd_max_encode", kernels.lloyd_max_encode, X, bits="whole"),
    named("lloyd_max_values", kernels.lloyd_max_values, CODES, bits="whole"),
    named("pack_bits", kernels.pack_bits, CODES, bits="whole"),
    named("pack_symbols", kernels.pack_symbols, CODES, base="whole"),
    named("random_bits", kernels.random_bits, KEY, n="whole"),
    named("uniform", kernels.uniform, KEY, n="whole"),
    named("top_k_mask", kernels.top_k_mask, X, k="whole"),
    named("top_k_masks", kernels.top_k_masks, {"w": X}, k="whole"),
    named("random_k_mask", kernels.random_k_mask, KEY, 8, k="whole"),
    named("block_mask", kernels.block_mask, X, k="whole", block_size="whole"),
    Row(packed, {"bits": 4}, {"bits": "whole"}, "unpack_bits"),
    Row(symbols, {"base": 3}, {"base": "whole"}, "unpack_symbols"),
    Row(
        rotated,
        {"block": 128, "turns": 1},
        {"block": "whole", "turns": "whole"},
        "rotate",
    ),
    Row(
        rotated_back,
        {"block": 128, "turns": 1},
        {"block": "whole", "turns": "whole"},
        "rotate_back",
    ),
]


@pytest.mark.parametrize(("row", "parameter", "value"), cases(ROWS))
def test_no_number_is_a_value_of_another_kind(row, parameter, value):
    is_refused(row, parameter, value)


@pytest.mark.parametrize(
    "k", [2, np.int64(2), np.array(2), jnp.int32(2), jnp.uint32(2)]
)
def test_how_many_to_select_may_be_of_any_integer_type_and_traced(k):
    expected = np.arange(8) >= 6
    np.testing.assert_array_equal(kernels.top_k_mask(X, k), expected)
    np.testing.assert_array_equal(
        jax.jit(kernels.top_k_mask)(X, jnp.asarray(k)), expected
    )


@pytest.mark.parametrize(
    "k",
    [jnp.float32(2), np.float64(2), jnp.bool_(True), np.bool_(True), jnp.ones(1, int)],
)
def test_and_of_no_other(k):
    for select in (kernels.top_k_mask, lambda x, k: kernels.block_mask(x, k, 2)):
        with pytest.raises(TypeError, match="k="):
            select(X, k)


@pytest.mark.parametrize("factor", [1e-30, 1e-22, 1.0, 1e22, 1e30])
def test_blocks_are_ranked_alike_at_every_scale(factor):
    """Their squares would all be zero, or infinite."""
    x = np.array([1, 1, 3, 3, 2, 2, 0, 2.5]) * factor
    marks = kernels.block_mask(jnp.asarray(x, jnp.float32), 1, 2)
    np.testing.assert_array_equal(
        marks, [False, False, True, True, False, False, False, False]
    )


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("levels", [1, 3, 7, 15, 31, 63, 127])
def test_codes_times_scale_are_finite_up_to_the_largest_float(norm, levels):
    """With the l2 norm where norm / levels, the value of a code, is a number at all."""
    most = np.finfo(np.float32).max
    x = np.full(9, most, np.float32) * np.float32([1, -1, 0.5, 1, 0, 1, -1, 1, 0.9])
    codes, scale = jax.jit(kernels.stochastic_quantize, static_argnums=(2, 3))(
        x, KEY, levels, norm
    )
    exact = (np.linalg.norm(x.astype(np.float64)) if norm == "l2" else most) / levels
    if exact > most:
        assert np.isinf(scale)
        return
    assert float(scale) == pytest.approx(float(exact), rel=1e-6)
    if norm == "max":
        assert np.isfinite(np.asarray(codes, np.float32) * np.float32(scale)).all()


def test_the_range_of_a_tensor_may_be_that_of_f32():
    most = float(np.finfo(np.float32).max)
    for x in (
        [most] * 4,
        [-most, most, 0.0, most / 2],
        [1e38, 2e38, 1.5e38],
        [-1e-37, 1e-37, 3e-38],
    ):
        x = np.float32(x)
        weight = 1e-12 * np.abs(x).max()
        sent = jax.jit(
            lambda x, weight=weight: kernels.nnadq_decode(
                *kernels.nnadq_encode(x, weight)
            )
        )(x)
        np.testing.assert_allclose(
            np.float64(sent), np.float64(x), atol=2e-6 * float(np.abs(x).max())
        )
