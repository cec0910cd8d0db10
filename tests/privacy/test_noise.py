"""Noise over rounds against matrices, binary decompositions and its own variance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.population.samplers.laws import Spaced
from fedjax_fm.privacy import (
    banded,
    binary_tree,
    independent,
    sensitivity,
    square_root_coefficients,
)

ROUNDS = 13
LIKE = {"w": jnp.zeros((40, 50)), "b": jnp.zeros(7)}


def increments(noise, rounds=ROUNDS, seed=0):
    """f64[rounds, entries], and the last state."""

    def step(state, _):
        drawn, state = noise.draw(state)
        return state, jnp.concatenate(
            [leaf.reshape(-1) for leaf in jax.tree.leaves(drawn)]
        )

    state, drawn = jax.jit(lambda s: jax.lax.scan(step, s, length=rounds))(
        noise.init(LIKE, jax.random.key(seed))
    )
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
    """Cov of the prefix sums' noise = B B' with B C = A: from the strategy, not from
    the code that draws.
    """
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
    """B with B C = A; for trees the one that takes the fewest nodes, as the online
    mechanism does.
    """
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
    """The first prefix sum and the third share no node; the second and the third share
    the first pair's.
    """
    prefix = np.cumsum(increments(binary_tree(8), rounds=4)[0], axis=0)
    third_leaf = prefix[2] - prefix[1]
    assert abs(np.corrcoef(prefix[1], third_leaf)[0, 1]) < 0.1
    assert (
        abs(np.corrcoef(prefix[0], prefix[1])[0, 1]) < 0.1
    )  # level 0 and level 1: other nodes
    assert np.var(third_leaf) == pytest.approx(1, abs=0.15)


def test_independent_noise_adds_up():
    drawn, _ = increments(independent())
    np.testing.assert_allclose(
        np.var(np.cumsum(drawn, axis=0), axis=1), np.arange(1, ROUNDS + 1), rtol=0.2
    )


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
        flat = np.concatenate(
            [np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(drawn)]
        )
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


@pytest.mark.parametrize(
    "law", [Spaced(4, None), Spaced(4, 2), Spaced(9, 1), Spaced(5, 3)]
)
@pytest.mark.parametrize("kind", ["independent", "trees of 4", "banded"])
def test_sensitivity_is_the_brute_force_one(kind, law):
    strategy = KINDS[kind].strategy(9)
    assert sensitivity(strategy, law) == pytest.approx(
        brute_force(strategy, law), rel=1e-9
    )


def test_known_sensitivities():
    assert sensitivity(binary_tree(16).strategy(16), Spaced(1, 1)) == pytest.approx(
        np.sqrt(5)
    )  # log2(16) + 1 levels
    assert sensitivity(np.eye(10), Spaced(3)) == pytest.approx(2)  # 4 participations
    with pytest.raises(ValueError, match="at most 2 bands"):
        sensitivity(banded([1, 0.5, 0.3]).strategy(9), Spaced(2))
    assert sensitivity(
        banded([1, 0.5, 0.3]).strategy(9), Spaced(2, 1)
    ) == pytest.approx(np.sqrt(1 + 0.25 + 0.09))


def test_impossible_noise_is_refused():
    for wrong in ([], [0.0, 1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="c_0 != 0"):
            banded(wrong)
    with pytest.raises(ValueError, match="rounds_per_tree >= 1"):
        binary_tree(0)


# Trees whose height is no power of two, and trees that are completed when they end.

SHAPES = [(1, False), (3, False), (5, False), (6, False), (7, False), (8, False)]
SHAPES += [(1, True), (3, True), (5, True), (6, True), (7, True), (8, True)]


def tree_release(rounds, per_tree, completion):
    """(nodes C, prefix sums from nodes B) by plain intervals: the online mechanism of
    Kairouz et al., section 3.
    """
    nodes, rows = {}, []
    for start in range(0, rounds, per_tree):
        end = min(start + per_tree, rounds)
        ended = [(start0, start0 + per_tree) for start0 in range(0, start, per_tree)]
        before = [
            part for tree in ended for part in _cover(*tree, per_tree, completion)
        ]
        width = 1
        while width <= per_tree:
            for first in range(start, end - width + 1, width):
                nodes.setdefault((first, first + width), len(nodes))
            width *= 2
        if completion and end - start == per_tree:
            nodes.setdefault((start, end), len(nodes))
        for now in range(start + 1, end + 1):
            rows.append(before + _cover(start, now, per_tree, completion))
    c, b = np.zeros((len(nodes), rounds)), np.zeros((rounds, len(nodes)))
    for (first, last), i in nodes.items():
        c[i, first:last] = 1
    for t, parts in enumerate(rows):
        b[t, [nodes[part] for part in parts]] = 1
    return c, b


def _cover(start, now, per_tree, completion):
    """Intervals that make up [start, now), the widest first; one where a tree is completed."""
    if completion and now - start == per_tree:
        return [(start, now)]
    parts = []
    while start < now:
        width = 1 << ((now - start).bit_length() - 1)
        parts.append((start, start + width))
        start += width
    return parts


@pytest.mark.parametrize(("per_tree", "completion"), SHAPES)
def test_trees_of_any_height_have_the_covariance_of_their_nodes(per_tree, completion):
    noise = (
        binary_tree(per_tree, completion=completion)
        if completion
        else binary_tree(per_tree)
    )
    c, b = tree_release(ROUNDS, per_tree, completion)
    np.testing.assert_allclose(b @ c, prefix_matrix(ROUNDS), atol=1e-9)
    drawn, _ = increments(noise)
    prefix, expected = np.cumsum(drawn, axis=0), b @ b.T
    n = prefix.shape[1]
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (np.abs(prefix @ prefix.T / n - expected) < 6 * scale / np.sqrt(n)).all()
    gram, own = c.T @ c, noise.strategy(ROUNDS)
    np.testing.assert_array_equal(
        own.T @ own, gram
    )  # what is accounted for is what is released


@pytest.mark.parametrize(("per_tree", "completion"), SHAPES)
@pytest.mark.parametrize("law", [Spaced(8, None), Spaced(8, 1), Spaced(10, 2)])
def test_sensitivity_across_trees_is_the_brute_force_one(per_tree, completion, law):
    noise = (
        binary_tree(per_tree, completion=completion)
        if completion
        else binary_tree(per_tree)
    )
    for rounds in (4, 11, 16):
        c, _ = tree_release(rounds, per_tree, completion)
        assert sensitivity(noise.strategy(rounds), law) == pytest.approx(
            brute_force_sets(c, law), rel=1e-9
        )


def brute_force_sets(strategy, law):
    """Over all sets of rounds; contributions that do not overlap, so that signs do not matter."""
    rounds = strategy.shape[1]
    most = law.max_participations or rounds
    best = 0.0
    for count in range(1, most + 1):
        sets = itertools.combinations(range(rounds), count)
        fitting = [
            s
            for s in sets
            if all(b - a >= law.min_separation for a, b in itertools.pairwise(s))
        ]
        if not fitting:
            break
        best = max(
            best, *(np.linalg.norm(strategy[:, list(s)].sum(axis=1)) for s in fitting)
        )
    return best


@pytest.mark.parametrize("per_tree", [3, 5, 6, 7])
def test_a_completed_tree_leaves_the_noise_of_one_node(per_tree):
    """Virtual steps without data complete it (Kairouz et al., appendix D): one variance
    stays, instead of one for each binary digit; a client pays ceil(log2 n) + 1 levels,
    as dp_accounting has it for whole trees."""
    plain = np.cumsum(increments(binary_tree(per_tree), rounds=2 * per_tree)[0], axis=0)
    whole = np.cumsum(
        increments(binary_tree(per_tree, completion=True), rounds=2 * per_tree)[0],
        axis=0,
    )
    near = {"rel": 6 * np.sqrt(2 / plain.shape[1])}
    assert np.var(plain[per_tree - 1]) == pytest.approx(per_tree.bit_count(), **near)
    assert np.var(whole[per_tree - 1]) == pytest.approx(1, **near)
    assert np.var(whole[per_tree]) == pytest.approx(
        2, **near
    )  # the first leaf of the next tree
    assert np.var(whole[2 * per_tree - 1]) == pytest.approx(2, **near)
    np.testing.assert_array_equal(plain[: per_tree - 1], whole[: per_tree - 1])
    paid = (
        sensitivity(
            binary_tree(per_tree, completion=True).strategy(2 * per_tree),
            Spaced(2 * per_tree),
        )
        ** 2
    )
    assert paid == pytest.approx(np.ceil(np.log2(per_tree)) + 1)


@pytest.mark.parametrize("per_tree", [1, 2, 3, 5, 6, 8])
def test_one_participation_costs_what_dp_accounting_says_of_trees(per_tree):
    """Without completion, restarts included: SingleEpochTreeAggregationDpEvent."""
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(
        neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL
    )
    accountant.compose(dp.SingleEpochTreeAggregationDpEvent(3.0, [per_tree, per_tree]))
    bound = sensitivity(
        binary_tree(per_tree).strategy(2 * per_tree), Spaced(2 * per_tree, 1)
    )
    ours = rdp.RdpAccountant().compose(dp.GaussianDpEvent(3.0 / bound))
    assert ours.get_epsilon(1e-5) == pytest.approx(
        accountant.get_epsilon(1e-5), rel=1e-9
    )


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        ("trees of 4", Spaced(4)),
        ("banded", Spaced(4, 2)),
        ("independent", Spaced(1)),
        ("independent", Spaced(1, 3)),
    ],
)
def test_sensitivity_of_every_number_of_rounds_at_once(kind, law):
    from fedjax_fm.privacy.sensitivity import sensitivities

    noise = KINDS[kind]
    found = sensitivities(noise.strategy(ROUNDS), law)
    expected = [0.0] + [
        sensitivity(noise.strategy(t), law) for t in range(1, ROUNDS + 1)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_contributions_that_overlap_and_cancel_are_refused_too():
    """C x of two rounds may cancel in C' C and be long all the same with the other sign of one."""
    strategy = np.array([[1.0, 0, 1.0], [1.0, 0, -1.0], [0, 1.0, 0]])
    assert sensitivity(strategy, Spaced(2)) == pytest.approx(2.0)


def test_noise_is_float32_whatever_the_default():
    with jax.enable_x64(True):
        for kind in ("independent", "trees of 4", "banded"):
            state = KINDS[kind].init(
                {"w": jnp.zeros(3, jnp.float32)}, jax.random.key(0)
            )
            drawn, after = KINDS[kind].draw(state)
            assert drawn["w"].dtype == jnp.float32
            assert jax.tree.map(jnp.result_type, after) == jax.tree.map(
                jnp.result_type, state
            )
