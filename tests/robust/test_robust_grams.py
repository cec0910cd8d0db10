"""Distances between products of low-rank factors, told by their Gram matrices."""

import numpy as np
import pytest

from fedjax_fm.algorithms.lora_rules.factors import Pair
from fedjax_fm.robust.distances import squared_distances
from fedjax_fm.robust.products import product_gram

C, R, N_IN, N_OUT = 6, 2, 5, 4


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pairs(stack=(), common=1.0):
    """(the start's factors, those of all clients)."""
    start = Pair(
        common * draw(R, *stack, N_IN, seed=1), common * draw(R, *stack, N_OUT, seed=2)
    )
    moved = Pair(
        start.a + draw(C, R, *stack, N_IN, seed=3),
        start.b + draw(C, R, *stack, N_OUT, seed=4),
    )
    return start, moved


def products(pair):
    """[clients, ..., in, out] in float64."""
    a, b = np.asarray(pair.a, np.float64), np.asarray(pair.b, np.float64)
    return np.einsum("cr...i,cr...o->c...io", a, b)


def change(start, end):
    return Pair(end.a - start.a, end.b - start.b)


@pytest.mark.parametrize("stack", [(), (3,), (2, 2)])
@pytest.mark.parametrize("common", [0.0, 1.0, 30.0])
def test_distances_are_those_of_the_products(stack, common):
    start, end = pairs(stack, common)
    whole = products(end).reshape(C, -1)
    expected = ((whole[:, None] - whole[None]) ** 2).sum(-1)
    found = squared_distances(product_gram(end, change(start, end)))
    scale = expected.max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


def test_the_gram_matrix_is_of_what_was_changed():
    start, end = pairs()
    one = np.einsum("ri,ro->io", start.a, start.b)
    moved = (products(end) - one).reshape(C, -1)
    found = product_gram(end, change(start, end))
    np.testing.assert_allclose(found, moved @ moved.T, rtol=1e-4, atol=1e-3)


def test_the_same_products_by_other_factors():
    """(B R, R^-1 A) of every client is the same update."""
    start, end = pairs()
    turned = []
    for k in range(C):
        g = draw(R, R, seed=10 + k).astype(np.float64) + 2 * np.eye(R)
        inverse = np.linalg.inv(g)
        turned.append((g.T @ end.a[k], inverse @ end.b[k]))
    other = Pair(*(np.stack(x).astype(np.float32) for x in zip(*turned, strict=True)))
    np.testing.assert_allclose(products(other), products(end), rtol=1e-3, atol=1e-3)
    found, expected = (
        squared_distances(product_gram(x, change(start, x))) for x in (other, end)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)
    far = np.linalg.norm((other.a - end.a).reshape(C, -1), axis=1)
    assert (far > 0.5).all()  # of which distances between factors know nothing
