"""Rotation, Lloyd-Max, powers of two, block formats, NNADQ, signs: against scipy, numpy
and brute force.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm import kernels
from fedjax_fm.kernels.block_formats import NF4
from fedjax_fm.kernels.hadamard import random_signs
from fedjax_fm.kernels.lloyd_max import CENTROIDS

KEY = jax.random.key(3)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# ---- rotation


@pytest.mark.parametrize("m", [1, 2, 64, 1024])
def test_walsh_hadamard_is_the_matrix(m: int) -> None:
    x = normal(3, m)
    expected = x.astype(np.float64) @ scipy.linalg.hadamard(m) / np.sqrt(m)
    np.testing.assert_allclose(jax.jit(kernels.walsh_hadamard)(x), expected, atol=3e-6)


@pytest.mark.parametrize("n", [1, 128, 1000, 1024, 1025, 2200])
def test_rotations_keep_norms_and_can_be_undone(n: int) -> None:
    x, seed = normal(n), jnp.uint32(2**31 + 5)
    rotated = kernels.rotate(x, seed, 1024, 2)
    assert rotated.shape == (kernels.rotated_length(n, 1024),)
    assert n <= rotated.shape[0] <= n + max(127, n % 1024)
    np.testing.assert_allclose(np.linalg.norm(rotated), np.linalg.norm(x), rtol=1e-5)
    np.testing.assert_allclose(
        kernels.rotate_back(rotated, seed, n, 1024, 2), x, atol=3e-6
    )
    assert not np.allclose(
        kernels.rotate_back(rotated, seed + 1, n, 1024, 2), x, atol=0.1
    )


def test_signs_are_fair_and_independent_of_each_other() -> None:
    signs = (
        np.stack([random_signs(jnp.uint32(seed), 4096) for seed in range(64)]) * 2.0 - 1
    )
    assert abs(signs.mean()) < 4 / np.sqrt(signs.size)
    for lag in (1, 2, 64):
        assert abs(np.mean(signs[:, lag:] * signs[:, :-lag])) < 4 / np.sqrt(signs.size)
    assert np.abs(np.corrcoef(signs)[np.triu_indices(64, 1)]).max() < 5 / np.sqrt(4096)


def test_a_rotation_makes_a_ramp_gaussian() -> None:
    y = np.asarray(
        kernels.rotate(
            np.linspace(0, np.sqrt(3), 1 << 16, dtype=np.float32),
            jnp.uint32(1),
            1 << 16,
        )
    )
    assert scipy.stats.kstest(y, "norm").pvalue > 1e-3


def test_sizes_that_make_no_sense() -> None:
    with pytest.raises(
        ValueError, match="expected a power of two, got a last axis of 12"
    ):
        kernels.walsh_hadamard(jnp.zeros(12))
    with pytest.raises(
        ValueError, match="100 entries rotate to 128 in blocks of 1024, got shape"
    ):
        kernels.rotate_back(jnp.zeros(100), jnp.uint32(0), 100, 1024)


# ---- Lloyd-Max

KERNELS_TABLE = {  # KERNELS, section 5
    1: (0.7979,),
    2: (0.4528, 1.5104),
    3: (0.2451, 0.756, 1.344, 2.152),
    4: (0.1284, 0.388, 0.6568, 0.9423, 1.2562, 1.618, 2.069, 2.7326),
}


@pytest.mark.parametrize("bits", CENTROIDS)
def test_centroids_are_the_means_of_their_cells(bits: int) -> None:
    levels = np.array(CENTROIDS[bits])
    edges = np.concatenate([[0], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    means = -np.diff(scipy.stats.norm.pdf(edges)) / np.diff(scipy.stats.norm.cdf(edges))
    np.testing.assert_allclose(levels, means, atol=5e-6)
    if bits in KERNELS_TABLE:
        np.testing.assert_allclose(levels, KERNELS_TABLE[bits], atol=6e-4)


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_codes_are_the_nearest_centroids(bits: int) -> None:
    y = normal(2, 500) * np.float32([[1e-3], [1e30]])
    codes, scales = jax.jit(kernels.lloyd_max_encode, static_argnums=(1, 2))(
        y, bits, "mse"
    )
    table = np.concatenate([CENTROIDS[bits], -np.array(CENTROIDS[bits])])
    standard = (
        y.astype(np.float64)
        / np.linalg.norm(y.astype(np.float64), axis=1, keepdims=True)
        * np.sqrt(500)
    )
    distance = np.abs(standard[..., None] - table)
    chosen = np.take_along_axis(distance, np.asarray(codes)[..., None].astype(int), -1)[
        ..., 0
    ]
    np.testing.assert_allclose(chosen, distance.min(axis=-1), atol=1e-6)
    q = table[codes]
    best = np.sum(q * y, axis=1, dtype=np.float64) / np.sum(q * q, axis=1)
    np.testing.assert_allclose(scales, best, rtol=1e-5)
    np.testing.assert_allclose(kernels.lloyd_max_values(codes, bits), q, rtol=1e-6)


def test_scales_of_blocks_that_are_zero_or_not_finite() -> None:
    y = (
        jnp.asarray(normal(4, 16))
        .at[0]
        .set(0)
        .at[1, 3]
        .set(jnp.nan)
        .at[2, 3]
        .set(-jnp.inf)
    )
    for scale in ("unbiased", "mse"):
        _, scales = kernels.lloyd_max_encode(y, 2, scale)
        assert scales[0] == 0
        assert np.isfinite(np.asarray(scales)).tolist() == [True, False, False, True]


# ---- powers of two

MAGNITUDES = [0.0, 1.0, 1.5, 3.999, 2.0**-126, 1e-40, 2.0**126, 0.1]


@pytest.mark.parametrize("x", [s * m for m in MAGNITUDES for s in (1, -1)])
def test_natural_rounds_to_a_neighbour_with_the_right_odds(x: float) -> None:
    n = 20_000
    codes = kernels.natural_encode(jnp.full(n, x, jnp.float32), KEY)
    assert int(codes.max()) < 512
    # numpy keeps the denormals that XLA's arithmetic on CPU flushes.
    words = (np.asarray(codes) >> 8 << 31) | ((np.asarray(codes) & 255) << 23)
    values = words.astype(np.uint32).view(np.float32).astype(np.float64)
    np.testing.assert_array_equal(
        np.asarray(kernels.natural_decode(codes)), values.astype(np.float32)
    )
    x = float(np.float32(x))
    low = np.sign(x) * 2.0 ** np.floor(np.log2(abs(x))) if abs(x) >= 2.0**-126 else 0.0
    high = 2 * low if low else np.sign(x) * 2.0**-126
    assert set(values.tolist()) <= {low, high}
    p = (x - low) / (high - low) if high != low else 0.0
    share = np.mean(values == high) if p else 0.0
    assert abs(share - p) <= 4 * np.sqrt(p * (1 - p) / n)
    assert p or np.all(values == x)


def test_natural_keeps_what_is_not_finite_infinite() -> None:
    x = jnp.array([jnp.nan, jnp.inf, -jnp.inf])
    decoded = kernels.natural_decode(kernels.natural_encode(x, KEY))
    assert np.isinf(np.asarray(decoded)).all()
    assert decoded[2] < 0


# ---- block formats


def test_nf4_levels_are_the_quantiles_of_qlora() -> None:
    """Dettmers et al. 2023, equation (4), with the offset of the authors' code."""
    quantile, offset = scipy.stats.norm.ppf, 0.9677083
    levels = np.concatenate(
        [
            quantile(np.linspace(offset, 0.5, 9)[:-1]),
            [0],
            -quantile(np.linspace(offset, 0.5, 8)[:-1]),
        ]
    )
    np.testing.assert_allclose(NF4, np.sort(levels / levels.max()), atol=1e-6)


def test_block_formats_choose_the_nearest_level() -> None:
    x = normal(7, 64) * np.float32([[1], [1e-30], [1e30], [5], [0], [1], [2]])
    largest = np.abs(x).max(axis=1).astype(np.float64)
    codes, scales = jax.jit(kernels.nf4_encode)(x)
    np.testing.assert_array_equal(scales, largest.astype(np.float32))
    distance = np.abs(
        x[..., None] / np.where(largest > 0, largest, 1)[:, None, None] - np.array(NF4)
    )
    chosen = np.take_along_axis(distance, np.asarray(codes)[..., None].astype(int), -1)[
        ..., 0
    ]
    np.testing.assert_allclose(chosen, distance.min(axis=-1), atol=1e-6)
    for bits in (2, 4, 8):
        codes, scales = jax.jit(kernels.int_block_encode, static_argnums=1)(x, bits)
        error = np.abs(np.float64(codes) * np.float64(scales)[:, None] - x)
        assert np.all(error <= np.float64(scales)[:, None] / 2 * (1 + 1e-5))
        assert int(np.abs(codes).max()) == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("top", [7, 127])
def test_integers_on_a_level_are_exact(top: int) -> None:
    x = np.arange(-top, top + 1, dtype=np.float32) * np.float32(0.1)
    codes, _ = kernels.int_block_encode(x, (top + 1).bit_length())
    assert codes.tolist() == list(range(-top, top + 1))


# ---- NNADQ


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=8, max_size=8))
def test_nnadq_stays_within_half_a_level(values: list[float]) -> None:
    x = np.array(values, np.float32)
    codes, norm, offset, level = jax.jit(kernels.nnadq_encode, static_argnums=(1, 2))(
        x, 1e-3, 32
    )
    decoded = np.float64(kernels.nnadq_decode(codes, norm, offset, level))
    half = np.float64(norm) / (2 * np.float64(level))
    assert np.all(
        np.abs(decoded - x) <= half * (1 + 1e-3) + 2e-7 * np.abs(x).max() + 1e-37
    )
    assert int(codes.max()) < 2 ** int(kernels.nnadq_width(level))
    assert int(kernels.nnadq_width(level)) == 1 + int(level).bit_length()


@pytest.mark.parametrize("n", [1, 8, 21])
def test_bit_planes_are_read_back(n: int) -> None:
    codes = np.random.default_rng(n).integers(0, 2**11, n).astype(np.uint32)
    planes = kernels.to_planes(jnp.asarray(codes), 23)
    assert planes.shape == (23, -(-n // 8))
    np.testing.assert_array_equal(
        planes[3], np.packbits((codes >> 3) & 1, bitorder="little")
    )
    np.testing.assert_array_equal(kernels.from_planes(planes, n), codes)
    assert not np.any(planes[11:])


# ---- signs, ternary


def test_the_scale_of_signs_counts_entries_that_are_there() -> None:
    x = np.array([[1, -3, 0, -0.0], [2, 2, 0, 0]], np.float32)
    minus, scale = kernels.sign_encode(x, jnp.array([4, 2]))
    assert minus.tolist() == [[False, True, False, True], [False] * 4]
    assert scale.tolist() == [1.0, 2.0]
    assert kernels.sign_decode(minus, scale)[0].tolist() == [1, -1, 1, -1]


def test_ternary_entries_are_a_sign_or_nothing() -> None:
    x = normal(100)
    codes, norm = kernels.ternary_encode(x, KEY)
    assert norm == np.abs(x).max()
    assert np.all((codes == 0) | (codes == np.sign(x)))
    assert codes[np.argmax(np.abs(x))] != 0


def test_nf4_is_decoded_without_a_table() -> None:
    """A gather would make index arrays as large as the matrix on TPUs."""
    codes = jnp.arange(16, dtype=jnp.uint8)[None]
    found = kernels.nf4_decode(codes, jnp.array([2.0]))
    np.testing.assert_array_equal(found[0], 2 * np.array(NF4, np.float32))
    text = jax.jit(kernels.nf4_decode).lower(codes, jnp.array([2.0])).as_text()
    assert "gather" not in text
