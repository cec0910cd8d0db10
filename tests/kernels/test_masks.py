"""Random, threshold and block masks, and lists of indices, against jax.random and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm.kernels import (
    bernoulli_mask,
    block_mask,
    mask_indices,
    mask_words,
    pack_bits,
    random_k_mask,
    threshold_mask,
)

blocks = jax.jit(block_mask, static_argnums=2)
random_k_of_33 = jax.jit(lambda key, k: random_k_mask(key, 33, k))


@pytest.mark.parametrize("k", [0, 1, 7, 32, 33, 50])
def test_random_k_has_k_entries_from_the_key_alone(k: int) -> None:
    key = jax.random.key(k)
    mask = np.asarray(random_k_of_33(key, k))
    assert mask.sum() == min(k, 33)
    words = np.asarray(jax.random.bits(key, (33,))) >> 1
    assert not mask.any() or mask.all() or words[mask].min() > words[~mask].max()


def test_every_pair_is_as_likely() -> None:
    """All 15 pairs of 6 entries, by chi-squared."""
    keys = jax.random.split(jax.random.key(0), 15_000)
    masks = np.asarray(jax.jit(jax.vmap(lambda key: random_k_mask(key, 6, 2)))(keys))
    seen, counts = np.unique(masks @ (1 << np.arange(6)), return_counts=True)
    assert len(seen) == 15
    assert (
        np.sum((counts - 1000) ** 2 / 1000) < 36
    )  # 14 degrees of freedom: one in a thousand


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0, 1e-5])
def test_bernoulli_is_that_of_jax_random(p: float) -> None:
    key = jax.random.key(4)
    mask = jax.jit(bernoulli_mask, static_argnums=2)(key, p, 50_000)
    np.testing.assert_array_equal(
        np.asarray(mask), np.asarray(jax.random.bernoulli(key, p, (50_000,)))
    )


def test_bernoulli_with_a_probability_an_entry() -> None:
    p = jnp.linspace(-0.5, 1.5, 999).at[5].set(jnp.nan)
    mask = np.asarray(bernoulli_mask(jax.random.key(0), p, 999))
    assert not mask[:250].any()
    assert mask[-249:].all()
    assert abs(mask[250:750].sum() - 250) < 5 * np.sqrt(500 / 6)
    with pytest.raises(
        ValueError, match=r"expected p of shape \(\) or \(7,\), got \(999,\)"
    ):
        bernoulli_mask(jax.random.key(0), p, 7)


def test_threshold() -> None:
    x = jnp.array([1.0, -2.0, 2.0, 1.9999999, jnp.nan, -jnp.inf, 0.0, 1e-40])
    assert threshold_mask(x, 2.0).tolist() == [
        False,
        True,
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    assert threshold_mask(x, 2e-40).tolist() == [
        True,
        True,
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    assert threshold_mask(x, 1e-41).tolist() == [
        True,
        True,
        True,
        True,
        False,
        True,
        False,
        True,
    ]
    assert threshold_mask(x, 0.0).all()
    assert threshold_mask(x, jnp.inf).tolist() == [False] * 5 + [True, False, False]


def test_blocks_of_the_largest_mean_square() -> None:
    x = jnp.array(
        [1.0, 1.0, 1.0, 3.0, 0.0, 0.0, -2.0]
    )  # mean squares 1, 3, 4 (a short block)
    x = x.at[2].set(0.0)
    assert blocks(x[:6], 1, 3).tolist() == [False] * 3 + [True] * 3
    assert blocks(x, 1, 3).tolist() == [False] * 6 + [True]
    assert blocks(x, 2, 3).tolist() == [False] * 3 + [True] * 4
    assert blocks(x, 0, 3).sum() == 0
    assert blocks(x, 9, 3).all()
    assert blocks(x.at[6].set(jnp.nan), 1, 3).tolist() == [False] * 3 + [True] * 3 + [
        False
    ]
    np.testing.assert_array_equal(
        np.asarray(blocks(x, 4, 1)), np.abs(np.asarray(x)) >= 1.0
    )
    with pytest.raises(ValueError, match=r"expected block_size >= 1, got block_size=0"):
        block_mask(x, 1, 0)


@settings(max_examples=100, deadline=None)
@given(
    n=st.sampled_from((1, 31, 32, 33, 100)),
    size=st.sampled_from((1, 30, 110)),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_indices_are_those_of_nonzero(
    n: int, size: int, density: float, seed: int
) -> None:
    mask = np.random.default_rng(seed).random(n) < density
    wanted = np.append(np.nonzero(mask)[0], np.full(size, n))[:size]
    np.testing.assert_array_equal(
        np.asarray(jax.jit(mask_indices, static_argnums=1)(mask, size)), wanted
    )


def test_indices_of_a_long_mask_and_of_rows() -> None:
    mask = np.random.default_rng(0).random((3, 50_001)) < np.array(
        [[0.01], [0.5], [0.999]]
    )
    places = jax.jit(jax.vmap(lambda row: mask_indices(row, 20_000)))(mask)
    for row, found in zip(mask, np.asarray(places), strict=True):
        np.testing.assert_array_equal(
            found, np.append(np.nonzero(row)[0], np.full(20_000, 50_001))[:20_000]
        )
    assert mask_indices(jnp.zeros(0, bool), 2).tolist() == [0, 0]
    assert mask_indices(jnp.ones(3, bool), 0).shape == (0,)


def test_words_are_the_packed_bits() -> None:
    mask = np.random.default_rng(0).random(77) < 0.5
    words = np.asarray(mask_words(jnp.asarray(mask)))
    np.testing.assert_array_equal(
        words.astype("<u4").view(np.uint8)[:10],
        np.asarray(pack_bits(jnp.asarray(mask), 1)),
    )
