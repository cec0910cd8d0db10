"""Residual vector quantisation beside plain loops in numpy and autograd in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm import models
from fedjax_fm.models.residual_quantizer import lloyd

RNG = np.random.default_rng(0)
TABLES = RNG.normal(size=(3, 5, 4)).astype("f4") * np.array([2, 1, 0.5])[:, None, None]
TABLES = TABLES.astype("f4")
X = RNG.normal(size=(2, 7, 4)).astype("f4")


def encoded(tables, vector):
    """One vector, table by table."""
    left, codes = vector.astype("f8"), []
    for table in tables:
        distances = [((left - entry) ** 2).sum() for entry in table]
        codes.append(int(np.argmin(distances)))
        left = left - table[codes[-1]]
    return codes, vector - left


def test_codes_and_vectors_are_those_of_a_plain_loop():
    codes = np.asarray(models.rvq_encode(TABLES, X))
    decoded = np.asarray(models.rvq_decode(TABLES, codes))
    assert codes.dtype == np.int32
    for place in np.ndindex(2, 7):
        expected, vector = encoded(TABLES, X[place])
        assert codes[place].tolist() == expected
        np.testing.assert_allclose(decoded[place], vector, atol=1e-5)


def test_the_first_codes_are_a_coarser_vector():
    codes = models.rvq_encode(TABLES, X)
    fewer = models.rvq_encode(TABLES[:2], X)
    np.testing.assert_array_equal(codes[..., :2], fewer)
    np.testing.assert_array_equal(
        models.rvq_decode(TABLES, codes[..., :2]), models.rvq_decode(TABLES[:2], fewer)
    )


def test_sums_of_entries_far_apart_are_found_exactly():
    tables = np.stack([100 * RNG.normal(size=(5, 4)), RNG.normal(size=(5, 4))])
    codes = RNG.integers(0, 5, (20, 2))
    vectors = models.rvq_decode(tables.astype("f4"), codes)
    np.testing.assert_array_equal(
        models.rvq_encode(tables.astype("f4"), vectors), codes
    )


def test_lloyd_is_the_plain_algorithm():
    points = RNG.normal(size=(60, 3)).astype("f4")
    table = points[:6].copy()
    table[5] = 50  # to which no point is nearest
    expected = table.astype("f8")
    for _ in range(4):
        nearest = ((points[:, None] - expected) ** 2).sum(-1).argmin(1)
        for k in range(6):
            if (nearest == k).any():
                expected[k] = points[nearest == k].mean(0)
    np.testing.assert_allclose(lloyd(points, table, 4), expected, atol=1e-5)
    np.testing.assert_array_equal(lloyd(points, table, 0), table)


def test_more_tables_and_more_steps_leave_less():
    points = RNG.normal(size=(400, 3)).astype("f4")

    def left(n_tables, steps):
        tables = models.fit_rvq(points, n_tables, 8, jax.random.key(0), steps)
        decoded = models.rvq_decode(tables, models.rvq_encode(tables, points))
        return float(jnp.square(points - decoded).sum(-1).mean())

    whole = float((points**2).sum(-1).mean())
    assert left(1, 20) < left(1, 0) < whole
    assert left(3, 20) < 0.5 * left(2, 20) < 0.25 * left(1, 20) < 0.25 * whole


def test_gradients_go_straight_through_and_losses_are_torch_s():
    torch = pytest.importorskip("torch")

    def total(tables, x):
        found = models.rvq_straight_through(tables, x)
        weighted = (found.vectors * X[::-1]).sum()
        return weighted, (0.25 * found.commitment + found.codebook).sum(), found.codes

    _, _, codes = total(TABLES, X)
    np.testing.assert_array_equal(codes, models.rvq_encode(TABLES, X))
    found = models.rvq_straight_through(TABLES, X).vectors
    np.testing.assert_allclose(found, models.rvq_decode(TABLES, codes), atol=1e-5)
    of_tables, of_x = jax.grad(lambda t, x: total(t, x)[0], (0, 1))(TABLES, X)
    np.testing.assert_array_equal(of_tables, 0)
    np.testing.assert_array_equal(of_x, X[::-1])

    tables, x = (torch.tensor(a, requires_grad=True) for a in (TABLES, X))
    picked = torch.tensor(np.asarray(codes)).long()
    decoded = sum(tables[q][picked[..., q]] for q in range(3))
    commitment = (x - decoded.detach()).square().mean(-1)
    codebook = (x.detach() - decoded).square().mean(-1)
    expected = (0.25 * commitment + codebook).sum()
    expected.backward()
    value = total(TABLES, X)[1]
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    gradients = jax.grad(lambda t, x: total(t, x)[1], (0, 1))(TABLES, X)
    for one, other in zip(gradients, (tables.grad, x.grad), strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"tables \[Q, K, d\] and vectors \[..., d\]"):
        models.rvq_encode(TABLES, X[..., :3])
    with pytest.raises(ValueError, match="at most 3 codes a vector, got 4"):
        models.rvq_decode(TABLES, np.zeros((2, 4), int))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"n at least n_codes=8, got \[7, 4\]"):
        models.fit_rvq(X[0], 1, 8, key)
    right = {"n_tables": 1, "n_codes": 2, "key": key, "steps": 1}
    for wrong in ({"n_tables": 0}, {"n_codes": 0}, {"steps": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            models.fit_rvq(X[0], **{**right, **wrong})
