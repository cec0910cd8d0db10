"""Noise over rounds against matrices, binary decompositions and its own variance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.population.samplers.laws import Spaced
from fedjax_fm.privacy import banded, binary_tree, independent, sensitivity, square_root_coefficients

ROUNDS = 13
LIKE = {"w": jnp.zeros((40, 50)), "b": jnp.zeros(7)}


def increments(noise, rounds=ROUNDS, seed=0):
    """f64[rounds, entries], and the last state."""

    def step(state, _):
        drawn, state = noise.draw(state)
        return state, jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(drawn)])

    state, drawn = jax.jit(lambda s: jax.lax.scan(step, s, length=rounds))(noise.init(LIKE, jax.random.key(seed)))
    return np.asarray(drawn, np.float64), state


KINDS = {
    "independent": independent(),
    "tree": binary_tree(16),
    "trees of 4": binary_tree(4),
    "banded": banded(square_root_coefficients(4)),
    "one band": banded([1.0]),
}


def prefix_matrix(n):
    return np.tril(np.ones((n, n)))


@pytest.mark.parametrize("kind", KINDS)
def test_covariance_is_that_of_the_matrix_form(kind):
    """Cov of the prefix sums' noise = B B' with B C = A: from the strategy, not from the code that draws."""
    noise = KINDS[kind]
    drawn, _ = increments(noise)
    prefix = np.cumsum(drawn, axis=0)
    strategy, a = noise.strategy(ROUNDS), prefix_matrix(ROUNDS)
    b = _decoder(kind, strategy)
    np.testing.assert_allclose(b @ strategy, a, atol=1e-9)
    n = prefix.shape[1]
    expected = b @ b.T
    error = np.abs(prefix @ prefix.T / n - expected)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (error < 6 * scale / np.sqrt(n)).all(), (error / scale).max()


def _decoder(kind, strategy):
    """B with B C = A; for trees the one that takes the fewest nodes, as the online mechanism does."""
    if "tree" not in kind:
        return prefix_matrix(len(strategy)) @ np.linalg.inv(strategy)
    per_tree = 16 if kind == "tree" else 4
    rows = []
    for t in range(1, ROUNDS + 1):
        row, start, left = np.zeros(len(strategy)), 0, t
        while left:
            size = min(1 << (left.bit_length() - 1), per_tree)
            node = np.zeros(ROUNDS)
            node[start : start + size] = 1
            (same,) = np.nonzero((strategy == node).all(axis=1))
            row[same[0]] = 1
            start, left = start + size, left - size
        rows.append(row)
    return np.array(rows)


def test_variance_of_a_tree_is_the_binary_decomposition():
    drawn, _ = increments(binary_tree(16), rounds=16)
    n = drawn.shape[1]
    variances = np.var(np.cumsum(drawn, axis=0), axis=1)
    popcount = np.array([t.bit_count() for t in range(1, 17)])
    np.testing.assert_allclose(variances, popcount, rtol=6 * np.sqrt(2 / n))


def test_a_node_is_one_draw():
    """The first prefix sum and the third share no node; the second and the third share the first pair's."""
    prefix = np.cumsum(increments(binary_tree(8), rounds=4)[0], axis=0)
    third_leaf = prefix[2] - prefix[1]
    assert abs(np.corrcoef(prefix[1], third_leaf)[0, 1]) < 0.1
    assert abs(np.corrcoef(prefix[0], prefix[1])[0, 1]) < 0.1  # level 0 and level 1: other nodes
    assert np.var(third_leaf) == pytest.approx(1, abs=0.15)


def test_independent_noise_adds_up():
    drawn, _ = increments(independent())
    np.testing.assert_allclose(np.var(np.cumsum(drawn, axis=0), axis=1), np.arange(1, ROUNDS + 1), rtol=0.2)


def test_one_band_is_independent_noise():
    one, _ = increments(banded([2.0]))
    other, _ = increments(independent())
    np.testing.assert_allclose(2 * one, other, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_goes_on_where_it_was(kind):
    whole, _ = increments(KINDS[kind])
    _, state = increments(KINDS[kind], rounds=5)
    for t in range(5, ROUNDS):
        drawn, state = jax.jit(KINDS[kind].draw)(state)
        flat = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(drawn)])
        np.testing.assert_allclose(flat, whole[t], atol=2e-6)


def test_square_root_squares_to_the_prefix_sum():
    c = square_root_coefficients(20)
    root = banded(c).strategy(20)
    np.testing.assert_allclose(root @ root, prefix_matrix(20), atol=1e-12)


def brute_force(strategy, law):
    """The largest norm over all sets of rounds and all signs."""
    rounds = strategy.shape[1]
    best = 0.0
    for pattern in range(1 << rounds):
        chosen = [t for t in range(rounds) if pattern >> t & 1]
        if any(b - a < law.min_separation for a, b in itertools.pairwise(chosen)):
            continue
        if law.max_participations is not None and len(chosen) > law.max_participations:
            continue
        for signs in range(1 << max(len(chosen) - 1, 0)):
            x = np.zeros(rounds)
            for i, t in enumerate(chosen):
                x[t] = -1 if signs >> i & 1 else 1
            best = max(best, np.linalg.norm(strategy @ x))
    return best


@pytest.mark.parametrize("law", [Spaced(4, None), Spaced(4, 2), Spaced(9, 1), Spaced(5, 3)])
@pytest.mark.parametrize("kind", ["independent", "trees of 4", "banded"])
def test_sensitivity_is_the_brute_force_one(kind, law):
    strategy = KINDS[kind].strategy(9)
    assert sensitivity(strategy, law) == pytest.approx(brute_force(strategy, law), rel=1e-9)


def test_known_sensitivities():
    assert sensitivity(binary_tree(16).strategy(16), Spaced(1, 1)) == pytest.approx(np.sqrt(5))  # log2(16) + 1 levels
    assert sensitivity(np.eye(10), Spaced(3)) == pytest.approx(2)  # 4 participations
    with pytest.raises(ValueError, match="at most 2 bands"):
        sensitivity(banded([1, 0.5, 0.3]).strategy(9), Spaced(2))
    assert sensitivity(banded([1, 0.5, 0.3]).strategy(9), Spaced(2, 1)) == pytest.approx(np.sqrt(1 + 0.25 + 0.09))


def test_impossible_noise_is_refused():
    for wrong in ([], [0.0, 1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="c_0 != 0"):
            banded(wrong)
    with pytest.raises(ValueError, match="rounds_per_tree >= 1"):
        binary_tree(0)
