"""FADA's losses and weights in closed form, by brute force and against scipy."""

import jax.numpy as jnp
import numpy as np
from scipy.cluster import vq

from fedjax_fm.algorithms import fada_losses

CLASSES = 3


def test_k_means_is_that_of_scipy():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(9, 2)) + 8 * c for c in np.eye(3, 2)])
    found = fada_losses.spread_in_clusters(
        jnp.asarray(rows, jnp.float32), jnp.ones(27, bool), clusters=3, steps=10
    )
    first = fada_losses._farthest_rows(jnp.asarray(rows), jnp.ones(27, bool), 3)
    centres, own = vq.kmeans2(rows, np.asarray(first, float), iter=10, minit="matrix")
    total = 0.0
    for r in range(3):  # the definition, over pairs
        members = rows[own == r]
        pairs = ((members[:, None] - members[None]) ** 2).sum()
        total += pairs / (2 * len(members))
    np.testing.assert_allclose(found, total / 27, rtol=1e-5)
    tighter = fada_losses.spread_in_clusters(
        jnp.asarray(centres[own] + 0.5 * (rows - centres[own]), jnp.float32),
        jnp.ones(27, bool),
        clusters=3,
        steps=10,
    )
    np.testing.assert_allclose(tighter, found / 4, rtol=1e-4)  # a gain above zero


def test_padded_rows_change_no_cluster():
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    mask = jnp.arange(8) < 5
    how = {"clusters": 3, "steps": 10}
    found = fada_losses.spread_in_clusters(rows.at[5:].set(99.0), mask, **how)
    alone = fada_losses.spread_in_clusters(rows[:5], mask[:5], **how)
    np.testing.assert_allclose(found, alone, rtol=1e-6)


def test_equal_distributions_are_told_by_nobody():
    rng = np.random.default_rng(0)
    real = jnp.ones(50, bool)
    for _ in range(5):
        logits = jnp.asarray(rng.normal(size=50), jnp.float32)
        assert fada_losses.telling(logits, real, logits, real) > 2 * np.log(2)
    at_half = fada_losses.telling(jnp.zeros(50), real, jnp.zeros(50), real)
    np.testing.assert_allclose(at_half, 2 * np.log(2), rtol=1e-6)


def test_the_bound_on_mutual_information():
    """With T the logarithm of the density ratio it is that of two Gaussians."""
    rng, rho, n = np.random.default_rng(0), 0.8, 1500
    p = rng.normal(size=n)
    q = rho * p + np.sqrt(1 - rho**2) * rng.normal(size=n)
    a, b = p[:, None], q[None, :]
    ratio = -np.log(1 - rho**2) / 2 - (
        rho**2 * (a**2 + b**2) - 2 * rho * a * b
    ) / (2 * (1 - rho**2))  # fmt: skip
    real = jnp.ones(n, bool)
    found = fada_losses.mutual_information(jnp.asarray(ratio, jnp.float32), real)
    np.testing.assert_allclose(found, -np.log(1 - rho**2) / 2, atol=0.08)
    # of independent ones the same T is no bound above zero
    q = rng.normal(size=n)
    b = q[None, :]
    ratio = -(rho**2 * (a**2 + b**2) - 2 * rho * a * b) / (2 * (1 - rho**2))
    assert fada_losses.mutual_information(jnp.asarray(ratio, jnp.float32), real) < 0


def test_entropy_is_largest_where_nothing_is_known():
    real = jnp.array([True, True, False])
    flat = jnp.zeros((3, CLASSES)).at[2, 0].set(50.0)
    np.testing.assert_allclose(
        fada_losses.negative_entropy(flat, real), -np.log(CLASSES), rtol=1e-6
    )
    sure = flat.at[:2, 0].set(50.0)
    np.testing.assert_allclose(fada_losses.negative_entropy(sure, real), 0, atol=1e-6)


def test_attention_is_a_softmax_of_gains_over_those_present():
    gains = np.array([0.3, -0.1, 5.0, 0.2], np.float32)
    present = np.array([True, True, False, True])
    found = fada_losses.attention(jnp.asarray(gains), jnp.asarray(present), 0.5)
    powers = np.where(present, np.exp(gains / 0.5), 0)
    np.testing.assert_allclose(found, powers / powers.sum(), rtol=1e-6)
    nobody = fada_losses.attention(jnp.asarray(gains), jnp.zeros(4, bool), 0.5)
    assert nobody.tolist() == [0, 0, 0, 0]
