"""Factorisations of stacks: numpy's values, and no batched call of LAPACK on CPUs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm import linalg

RNG = np.random.default_rng(0)
STACK = RNG.normal(size=(2, 3, 5, 5)).astype(np.float32)
SYMMETRIC = STACK + STACK.swapaxes(-1, -2)
TALL = RNG.normal(size=(4, 7, 3)).astype(np.float32)
CASES = {
    "svd": (linalg.svd, TALL),
    "singular_values": (linalg.singular_values, TALL),
    "qr": (linalg.qr, TALL),
    "eigh": (linalg.eigh, SYMMETRIC),
    "det": (linalg.det, STACK),
}


def test_products_of_the_factors_are_the_matrices():
    u, s, vt = linalg.svd(TALL)
    np.testing.assert_allclose((u * s[..., None, :]) @ vt, TALL, atol=1e-5)
    q, r = linalg.qr(TALL)
    np.testing.assert_allclose(q @ r, TALL, atol=1e-5)
    values, vectors = linalg.eigh(SYMMETRIC)
    again = (vectors * values[..., None, :]) @ vectors.swapaxes(-1, -2)
    np.testing.assert_allclose(again, SYMMETRIC, atol=1e-5)
    x = linalg.solve(STACK, TALL[0, :5][None, None] * np.ones((2, 3, 1, 1)))
    np.testing.assert_allclose(
        STACK @ x, np.broadcast_to(TALL[0, :5], (2, 3, 5, 3)), atol=1e-3
    )


def test_values_are_those_of_numpy():
    expected = np.linalg.svd(TALL, compute_uv=False)
    np.testing.assert_allclose(linalg.singular_values(TALL), expected, rtol=1e-5)
    np.testing.assert_allclose(linalg.det(STACK), np.linalg.det(STACK), rtol=1e-3)
    full = linalg.svd(TALL, full_matrices=True)[0]
    assert full.shape == (4, 7, 7)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lanes", [0, 2])
def test_lapack_is_called_for_one_matrix_at_a_time(name, lanes):
    """Batched calls of two devices at once wait for each other on two cores."""
    function, stack = CASES[name]
    if lanes:
        stack = np.stack([stack] * lanes)
        function = jax.vmap(function)
    text = jax.jit(function).lower(jnp.asarray(stack)).compile().as_text()
    calls = [line for line in text.splitlines() if "lapack" in line]
    assert calls
    for line in calls:
        for dims in re.findall(r"f32\[([\d,]*)\]", line):
            assert dims.count(",") < 2, line
