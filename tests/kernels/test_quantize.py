"""Stochastic quantisation, against the closed forms of QSGD (Alistarh et al. 2017)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm.kernels import (
    stochastic_quantize,
    stochastic_quantize_buckets,
    uniform_dequantize,
    uniform_quantize,
)
from fedjax_fm.kernels.random_bits import rounding_noise, weyl_start

N_DRAWS = 20_000
CASES = [(norm, levels) for norm in ("l2", "max") for levels in (1, 7, 127)]


@functools.cache
def quantizer(levels: int, norm: str):
    return jax.jit(lambda x, key: stochastic_quantize(x, key, levels, norm))


@functools.cache
def batch_quantizer(levels: int, norm: str):
    return jax.jit(
        jax.vmap(
            lambda x, key: stochastic_quantize(x, key, levels, norm), in_axes=(None, 0)
        )
    )


@functools.cache
def draws(x: tuple[float, ...], levels: int, norm: str) -> np.ndarray:
    """codes * scale under N_DRAWS keys: f64[N_DRAWS, n]."""
    keys = jax.random.split(jax.random.key(levels), N_DRAWS)
    codes, scales = batch_quantizer(levels, norm)(np.float32(x), keys)
    return np.asarray(codes, np.float64) * np.asarray(scales, np.float64)[:, None]


rounding_start = jax.jit(weyl_start)


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n).astype(np.float32)


def law(x: np.ndarray, levels: int, norm: str) -> tuple[float, np.ndarray, np.ndarray]:
    """(distance of two levels, floor, probability of the level above it), all in f64."""
    x = np.abs(np.asarray(x, np.float64))
    step = (np.linalg.norm(x) if norm == "l2" else x.max()) / levels
    return step, np.floor(x / step), x / step - np.floor(x / step)


def noise_by_hand(key: jax.Array, n: int) -> np.ndarray:
    """The upper bits of jax.random's words above those of a Weyl sequence, in 64-bit integers."""
    start = int(rounding_start(key))
    weyl = (start + np.arange(n, dtype=np.uint64) * 0x9E3779B9) % 2**32
    words = (np.asarray(jax.random.bits(key, (n,)), np.uint64) >> 16 << 16) + (
        weyl >> 16
    )
    return ((words >> 9) / 2.0**23).astype(np.float32)


def z_of_mean(samples: np.ndarray, mean: float) -> float:
    return (samples.mean() - mean) / (samples.std(ddof=1) / np.sqrt(len(samples)))


VECTOR = tuple(normal(48).tolist())


@pytest.mark.parametrize(("norm", "levels"), CASES)
def test_every_entry_is_unbiased(norm: str, levels: int) -> None:
    x = np.array(VECTOR)
    step, _, p = law(x, levels, norm)
    random = p * (1 - p) > 1e-3  # the largest entry under the max norm is not random
    z = (draws(VECTOR, levels, norm).mean(axis=0) - x)[random] / np.sqrt(
        step**2 * (p * (1 - p))[random] / N_DRAWS
    )
    assert np.abs(z).max() < 5
    assert abs(np.sum(z**2) - len(z)) < 5 * np.sqrt(
        2 * len(z)
    )  # chi-squared: the spread is right too
    np.testing.assert_allclose(
        draws(VECTOR, levels, norm)[:, ~random].mean(axis=0),
        x[~random],
        atol=1e-3 * step,
    )


@pytest.mark.parametrize(("norm", "levels"), CASES)
def test_the_variance_is_the_closed_form(norm: str, levels: int) -> None:
    x = np.array(VECTOR)
    step, _, p = law(x, levels, norm)
    error = draws(VECTOR, levels, norm) - x
    assert abs(z_of_mean(np.sum(error**2, axis=1), step**2 * np.sum(p * (1 - p)))) < 4
    # Entries are rounded independently of each other: the variance of the sum is the
    # sum of the variances.
    assert abs(z_of_mean(np.sum(error, axis=1) ** 2, step**2 * np.sum(p * (1 - p)))) < 4


@pytest.mark.parametrize(("norm", "levels"), CASES)
def test_an_entry_takes_the_two_levels_around_it_only(norm: str, levels: int) -> None:
    step, floor, _ = law(np.array(VECTOR), levels, norm)
    codes = np.rint(draws(VECTOR, levels, norm) / step)
    assert np.all(
        np.abs(codes) >= floor - (floor == levels)
    )  # x = norm may be divided to one ulp below the top
    assert np.all(np.abs(codes) <= np.minimum(floor + 1, levels))
    assert np.all((codes == 0) | (np.sign(codes) == np.sign(np.array(VECTOR))))


@pytest.mark.parametrize("levels", [1, 7, 127])
@pytest.mark.parametrize("shape", ["normal", "constant", "one", "skewed"])
def test_variance_and_sparsity_keep_the_bounds_of_the_paper(
    levels: int, shape: str
) -> None:
    n = 48
    one = np.eye(1, n, dtype=np.float32)[0]
    x = {
        "normal": normal(n),
        "constant": np.full(n, 0.3),
        "one": one,
        "skewed": normal(n) ** 5,
    }[shape]
    x = np.asarray(x, np.float32)
    q = draws(tuple(x.tolist()), levels, "l2")
    x = x.astype(np.float64)
    errors, non_zero = np.sum((q - x) ** 2, axis=1), np.sum(q != 0, axis=1)
    bound = min(n / levels**2, np.sqrt(n) / levels) * np.sum(x**2)
    assert errors.mean() <= bound + 4 * errors.std() / np.sqrt(N_DRAWS)
    assert non_zero.mean() <= levels * (
        levels + np.sqrt(n)
    ) + 4 * non_zero.std() / np.sqrt(N_DRAWS)


def test_one_level_is_a_coin_of_probability_x_over_norm() -> None:
    x = np.array(VECTOR)
    a = np.abs(x) / np.linalg.norm(x)
    heads = draws(VECTOR, 1, "l2") != 0
    assert np.all(np.abs(heads.mean(axis=0) - a) < 5 * np.sqrt(a * (1 - a) / N_DRAWS))
    # E||Q||_0 = ||x||_1 / ||x||_2, with the variance of independent coins
    z = (heads.sum(axis=1).mean() - a.sum()) / np.sqrt(np.sum(a * (1 - a)) / N_DRAWS)
    assert abs(z) < 4


@pytest.mark.parametrize(
    ("levels", "dtype"),
    [(1, np.int8), (127, np.int8), (128, np.int32), (1000, np.int32)],
)
def test_codes_have_the_smallest_dtype_that_holds_the_levels(
    levels: int, dtype: type
) -> None:
    x, key = jnp.ones(5, jnp.bfloat16), jax.random.key(0)
    codes, scale = jax.eval_shape(
        lambda x, key: stochastic_quantize(x, key, levels), x, key
    )
    assert (codes.dtype, codes.shape) == (dtype, (5,))
    assert (scale.dtype, scale.shape) == (jnp.float32, ())


@pytest.mark.parametrize("levels", [127, 128])
def test_codes_reach_the_last_level_and_stop_there(levels: int) -> None:
    x = np.array([-3.0, 3.0, 0.0, 1e-3, -0.7, 2.9999998, 0.1, -0.1], np.float32)
    codes = [
        quantizer(levels, "max")(x, key)[0]
        for key in jax.random.split(jax.random.key(0), 20)
    ]
    assert np.min(codes) == -levels
    assert np.max(codes) == levels


def test_a_division_that_rounds_above_the_last_level_stays_there() -> None:
    """norm / (norm / 63) may be 63 and one ulp: about 8 of these entries would draw a 64."""
    norms = np.linspace(1, 2, 1000, dtype=np.float32)
    norm = norms[norms / (norms / np.float32(63)) > 63][0]
    codes, _ = quantizer(63, "max")(np.full(2**21, norm), jax.random.key(0))
    assert np.unique(codes).tolist() == [63]


@settings(max_examples=200, deadline=None)
@given(
    x=st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
        min_size=8,
        max_size=8,
    ),
    case=st.sampled_from(CASES),
    seed=st.integers(0, 2**20),
)
def test_no_entry_moves_by_a_whole_step(
    x: list[float], case: tuple[str, int], seed: int
) -> None:
    norm, levels = case
    codes, scale = (
        np.asarray(y, np.float64)
        for y in quantizer(levels, norm)(np.float32(x), jax.random.key(seed))
    )
    largest = np.abs(x).max()
    assert np.abs(codes).max() <= levels
    if (
        largest > 1e-34
    ):  # else scale may be below the normal floats, which count as zero
        assert scale > 0
    np.testing.assert_array_less(np.abs(codes * scale - x), scale * (1 + 1e-4) + 1e-36)


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("n", [0, 8])
def test_zero_gives_zero_codes_and_scale_zero(n: int, norm: str) -> None:
    codes, scale = quantizer(7, norm)(jnp.zeros(n), jax.random.key(0))
    assert codes.tolist() == [0] * n
    assert float(scale) == 0.0


@pytest.mark.parametrize("step", [0.25, 3.0, 10.0])
@pytest.mark.parametrize("levels", [1, 7, 127, 32767])
def test_entries_on_a_level_are_not_random(levels: int, step: float) -> None:
    """Also when u is next to 1: 40,000 draws an entry would show a sum floor(a + u)
    that rounds up.
    """
    wanted = np.repeat(
        np.array([levels, 0, 1, levels // 2, levels - 1, -levels]), 40_000
    )
    codes, scale = quantizer(levels, "max")(
        jnp.asarray(wanted * step, jnp.float32), jax.random.key(3)
    )
    assert float(scale) == step
    np.testing.assert_array_equal(np.asarray(codes), wanted)


def test_entries_on_a_level_of_the_l2_norm_are_not_random() -> None:
    x = np.array([4.0, -4.0, 4.0, 1.0, 0.0, 0.0, 0.0, 0.0], np.float32)  # norm 7
    for key in jax.random.split(jax.random.key(0), 50):
        codes, scale = quantizer(7, "l2")(x, key)
        assert float(scale) == 1.0
        assert codes.tolist() == x.tolist()


@settings(max_examples=80, deadline=None)
@given(
    case=st.sampled_from(CASES),
    exponent=st.integers(-90, 90),
    seed=st.integers(0, 2**20),
)
def test_powers_of_two_scale_the_scale_only(
    case: tuple[str, int], exponent: int, seed: int
) -> None:
    norm, levels = case
    x, key, factor = normal(8, seed), jax.random.key(seed), np.float32(2.0**exponent)
    codes, scale = quantizer(levels, norm)(x, key)
    codes_scaled, scale_scaled = quantizer(levels, norm)(x * factor, key)
    np.testing.assert_array_equal(np.asarray(codes), np.asarray(codes_scaled))
    assert float(scale_scaled) == float(scale) * factor


@pytest.mark.parametrize(("norm", "levels"), CASES)
def test_the_sign_passes_through(norm: str, levels: int) -> None:
    x, key = normal(8), jax.random.key(1)
    codes, scale = quantizer(levels, norm)(x, key)
    codes_of_minus, scale_of_minus = quantizer(levels, norm)(-x, key)
    np.testing.assert_array_equal(-np.asarray(codes), np.asarray(codes_of_minus))
    assert float(scale) == float(scale_of_minus) > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("norm", ["l2", "max"])
def test_what_is_not_finite_spoils_the_scale_and_every_decoded_entry(
    bad: float, norm: str
) -> None:
    for place in (0, 7):
        x = normal(8)
        x[place] = bad
        codes, scale = quantizer(7, norm)(x, jax.random.key(0))
        assert not np.isfinite(scale)
        assert np.abs(np.asarray(codes, int)).max() <= 7
        assert not np.isfinite(np.asarray(codes * scale)).any()


@pytest.mark.parametrize(("norm", "levels"), CASES)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_tiny_and_huge_norms_are_as_good_as_any(
    size: float, norm: str, levels: int
) -> None:
    x = normal(8) * np.float32(size)
    step, floor, _ = law(x, levels, norm)
    codes, scale = quantizer(levels, norm)(x, jax.random.key(0))
    assert float(scale) == pytest.approx(step, rel=1e-6)
    inside = floor < levels
    magnitude = np.abs(np.asarray(codes, int))
    assert np.all((magnitude == floor) | (magnitude == floor + 1) | ~inside)


@pytest.mark.parametrize(("norm", "levels"), CASES)
def test_the_largest_floats_are_quantised_too(norm: str, levels: int) -> None:
    """The inverse of a scale above 2^126 is below the normal floats, where XLA has zero."""
    x = np.array([1e38, -2e38, 0.0, 1e30, 1e37, 0.0, 0.0, -1.0], np.float32)
    codes, scale = quantizer(levels, norm)(x, jax.random.key(0))
    step, floor, _ = law(x, levels, norm)
    assert float(scale) == pytest.approx(step, rel=1e-6)
    assert np.all((np.abs(codes) == floor) | (np.abs(codes) == floor + 1))


def test_a_norm_beyond_f32_is_flagged_and_one_below_it_is_zero() -> None:
    x = np.full(8, 3e38, np.float32)  # the entries are finite, their l2 norm is not
    codes, scale = quantizer(7, "l2")(x, jax.random.key(0))
    assert float(scale) == pytest.approx(3e38 * np.sqrt(8) / 7, rel=1e-6)
    assert set(np.asarray(codes).tolist()) == {2, 3}  # 2.47 levels
    assert np.isinf(quantizer(1, "l2")(x, jax.random.key(0))[1])
    for levels, size in (
        (127, 2e-38),
        (7, 1e-42),
    ):  # the step, or the entries too, are below the normal floats
        codes, scale = quantizer(levels, "max")(
            np.full(8, size, np.float32), jax.random.key(0)
        )
        np.testing.assert_allclose(np.asarray(codes * scale), np.zeros(8), atol=1e-37)


def test_jit_is_eager_vmap_is_the_loop_and_keys_matter() -> None:
    x = np.stack([normal(8, seed) for seed in range(5)])
    keys = jax.random.split(jax.random.key(0), 5)
    batch = jax.jit(jax.vmap(lambda x, key: stochastic_quantize(x, key, 7, "max")))(
        x, keys
    )
    for i in range(5):
        for codes, scale in (
            stochastic_quantize(jnp.asarray(x[i]), keys[i], 7, "max"),
            quantizer(7, "max")(x[i], keys[i]),
        ):
            np.testing.assert_array_equal(np.asarray(codes), np.asarray(batch[0][i]))
            assert float(scale) == float(batch[1][i])
    other, _ = quantizer(7, "max")(x[0], keys[1])
    assert other.tolist() != batch[0][0].tolist()


@pytest.mark.parametrize("n", [5000, 40_000])  # the longer one is drawn in chunks
def test_the_noise_is_within_one_in_65536_of_jax_random(n: int) -> None:
    key = jax.random.key(9)
    noise = np.asarray(jax.jit(rounding_noise, static_argnums=1)(key, n))
    np.testing.assert_array_equal(noise, noise_by_hand(key, n))
    assert np.abs(noise - np.asarray(jax.random.uniform(key, (n,)))).max() < 2.0**-16
    assert noise.min() >= 0
    assert noise.max() < 1
    x = normal(n)
    codes, scale = quantizer(7, "max")(x, key)
    steps = np.abs(x) / np.float32(scale)
    up = noise >= 1 - (steps - np.floor(steps))
    np.testing.assert_array_equal(
        np.asarray(codes), np.sign(x) * np.minimum(np.floor(steps) + up, 7)
    )


def test_small_probabilities_are_exact_too() -> None:
    """p = 2^-18 is below the threefry bits of the noise; over many keys the Weyl
    sequence makes up for them.
    """
    keys, n = jax.random.split(jax.random.key(0), 2000), 4096
    p = 2.0**-18

    def ups(key):
        return jnp.sum(rounding_noise(key, n) >= 1 - p)

    n_up = int(np.sum(jax.jit(jax.vmap(ups))(keys)))
    expected = 2000 * n * p
    assert abs(n_up - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("n", [0, 1, 30, 90, 100])
@pytest.mark.parametrize("norm", ["l2", "max"])
def test_buckets_have_scales_of_their_own_and_share_the_noise(
    n: int, norm: str
) -> None:
    x, key = normal(n, 3), jax.random.key(n)
    codes, scales = jax.jit(
        lambda x, key: stochastic_quantize_buckets(x, key, 7, norm, 30)
    )(x, key)
    assert codes.shape == (n,)
    assert scales.shape == (max(1, -(-n // 30)),)
    noise = noise_by_hand(key, n)
    for j in range(0, n, 30):
        here, scale = x[j : j + 30], np.float32(scales[j // 30])
        step, _, _ = law(here, 7, norm)
        assert float(scale) == pytest.approx(step, rel=1e-6)
        steps = np.abs(here) / scale
        up = noise[j : j + 30] >= 1 - (steps - np.floor(steps))
        wanted = np.sign(here) * np.minimum(np.floor(steps) + up, 7)
        np.testing.assert_array_equal(np.asarray(codes)[j : j + 30], wanted)


@functools.cache
def uniform_quantizer(bits: int):
    return jax.jit(lambda x, key: uniform_quantize(x, key, bits))


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_uniform_quantiser_is_unbiased_with_the_variance_of_its_grid(
    bits: int,
) -> None:
    x = normal(48, 2) + 3.0
    keys = jax.random.split(jax.random.key(bits), N_DRAWS)

    def draw(key):
        return uniform_dequantize(*uniform_quantize(x, key, bits))

    q = np.asarray(jax.jit(jax.vmap(draw))(keys), np.float64)
    step = (x.max().astype(np.float64) - x.min()) / (2**bits - 1)
    p = (x - x.min().astype(np.float64)) / step % 1
    random = p * (1 - p) > 1e-3
    z = (q.mean(axis=0) - x)[random] / np.sqrt(
        step**2 * (p * (1 - p))[random] / N_DRAWS
    )
    assert np.abs(z).max() < 5
    assert (
        abs(z_of_mean(np.sum((q - x) ** 2, axis=1), step**2 * np.sum(p * (1 - p)))) < 4
    )
    assert np.abs(q - x).max() < step * (1 + 1e-4)


def test_the_ends_of_the_range_and_constant_vectors_are_exact() -> None:
    for bits, dtype in ((1, np.uint8), (8, np.uint8), (9, np.uint16), (16, np.uint16)):
        x = np.array([-1.5, 2.5, -1.5, 2.5], np.float32)
        codes, low, step = uniform_quantizer(bits)(x, jax.random.key(bits))
        assert codes.dtype == dtype
        assert codes.tolist() == [0, 2**bits - 1] * 2
        np.testing.assert_allclose(
            np.asarray(uniform_dequantize(codes, low, step)), x, rtol=1e-6
        )
    for value in (0.0, -7.25, 3e38):
        codes, low, step = uniform_quantizer(4)(
            np.full(5, value, np.float32), jax.random.key(0)
        )
        assert uniform_dequantize(codes, low, step).tolist() == [np.float32(value)] * 5
        assert float(step) == 0
    wide = np.array(
        [-3e38, 3e38, 0.0], np.float32
    )  # the range itself is beyond the floats
    codes, low, step = uniform_quantizer(8)(wide, jax.random.key(0))
    assert np.isfinite(step)
    assert codes.tolist()[:2] == [0, 255]
    assert uniform_quantize(jnp.zeros(0), jax.random.key(0), 4)[0].shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_uniform_quantiser_flags_what_is_not_finite(bad: float) -> None:
    x = normal(8)
    x[3] = bad
    codes, low, step = uniform_quantizer(4)(x, jax.random.key(0))
    assert not np.isfinite(np.asarray(uniform_dequantize(codes, low, step))).any()


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"expected levels >= 1, got levels=0"):
        stochastic_quantize(jnp.ones(3), jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"expected norm 'l2' or 'max', got 'l1'"):
        stochastic_quantize(jnp.ones(3), jax.random.key(0), 7, "l1")
    with pytest.raises(
        ValueError, match=r"expected bucket_size >= 1, got bucket_size=0"
    ):
        stochastic_quantize_buckets(jnp.ones(3), jax.random.key(0), bucket_size=0)
    for bits in (0, 17):
        with pytest.raises(
            ValueError, match=f"expected 1 <= bits <= 16, got bits={bits}"
        ):
            uniform_quantize(jnp.ones(3), jax.random.key(0), bits)
