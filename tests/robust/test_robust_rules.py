"""What every robust rule promises, one row a rule; and each of them in numpy, with loops."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm import privacy, robust
from fedjax_fm.robust import blocks, distances

D = 6
ROOT = np.random.default_rng(9).normal(size=D).astype(np.float32)


class Row(NamedTuple):
    """A rule and what is promised of it.

    Attributes:
      make: the rule that tolerates f liars among m.
      least: `f -> m`, the fewest uploads.
      moves: with all uploads that are moved by the same.
      scales: "signed", "positive" or "" under one factor for all uploads.
      repeats: gives back an upload that all clients send.
      breaks: whether f liars may move it anywhere.
      distinct: (f, m) for which uploads at random have no equal scores.
    """

    make: object
    least: object
    moves: bool = True
    scales: str = "signed"
    repeats: bool = True
    breaks: bool = False
    distinct: tuple = (1, 9)


ROWS = {
    "coordinate_median": Row(lambda f, m: robust.coordinate_median(), lambda f: 2 * f + 1),
    "trimmed_mean": Row(lambda f, m: robust.trimmed_mean(f / m), lambda f: 2 * f + 1),
    "krum": Row(lambda f, m: robust.krum(f), lambda f: 2 * f + 3),
    "multi_krum": Row(lambda f, m: robust.multi_krum(f), lambda f: 2 * f + 3),
    "bulyan": Row(
        lambda f, m: robust.bulyan(f),
        lambda f: 4 * f + 3,
        distinct=(3, 15),  # else its last choices are made by one neighbour
    ),
    "geometric_median": Row(
        lambda f, m: robust.geometric_median(iterations=100, smoothing=1e-6),
        lambda f: 2 * f + 1,
    ),
    "centred_clipping": Row(
        lambda f, m: robust.centred_clipping(3.0),
        lambda f: 2 * f + 1,
        moves=False, scales="", repeats=False,
    ),
    "norm_bound": Row(
        lambda f, m: robust.norm_bound(1.0),
        lambda f: 2 * f + 1,
        moves=False, scales="", repeats=False,
    ),
    "fltrust": Row(
        lambda f, m: robust.fltrust({"x": np.zeros(1)}),
        lambda f: 2 * f + 1,
        moves=False, scales="free", repeats=False,
    ),
    "sign_majority": Row(
        lambda f, m: robust.sign_majority(0.5),
        lambda f: 2 * f + 1,
        moves=False, scales="free", repeats=False,
    ),
    "mean": Row(lambda f, m: robust.mean(), lambda f: 2 * f + 1, breaks=True),
}  # fmt: skip
EACH = pytest.mark.parametrize("name", sorted(ROWS))


def uploads_of(x, accepted=None, weights=None):
    """Two leaves; rows that are not accepted hold zeros."""
    x = np.asarray(x, np.float32)
    accepted = np.ones(len(x), bool) if accepted is None else np.asarray(accepted)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights)
    x = np.where(accepted[:, None], x, 0)
    values = {"a": jnp.asarray(x[:, :2]), "b": jnp.asarray(x[:, 2:, None])}
    kept = jnp.asarray(np.where(accepted, weights, 0), jnp.float32)
    return robust.Uploads(values, jnp.asarray(accepted), kept)


def as_tree(v):
    return {"a": jnp.asarray(v[:2]), "b": jnp.asarray(v[2:, None])}


def as_vector(tree):
    return np.concatenate([np.ravel(tree["a"]), np.ravel(tree["b"])])


def reduced(rule, x, accepted=None, weights=None, root=ROOT):
    uploads = uploads_of(x, accepted, weights)
    state = rule.init(as_tree(np.zeros(np.shape(x)[1], np.float32)))
    return as_vector(jax.jit(rule.reduce)(uploads, state, as_tree(root)).value)


def draw(m=9, d=D, seed=0):
    return np.random.default_rng(seed).normal(size=(m, d)).astype(np.float32)


# The contract


@EACH
def test_the_order_of_clients_says_nothing(name):
    f, m = ROWS[name].distinct
    rule, x = ROWS[name].make(f, m), draw(m)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(m)
        np.testing.assert_allclose(
            reduced(rule, x), reduced(rule, x[order]), rtol=1e-5, atol=1e-6
        )


@EACH
def test_moved_uploads(name):
    rule, x, shift = ROWS[name].make(1, 9), draw(), 5 * draw(1, seed=4)[0]
    before, after = reduced(rule, x), reduced(rule, x + shift)
    if ROWS[name].moves:
        np.testing.assert_allclose(after, before + shift, rtol=1e-4, atol=1e-5)
    else:
        assert np.abs(after - before - shift).max() > 0.1


@EACH
@pytest.mark.parametrize("factor", [4.0, 0.25, -1.0])
def test_scaled_uploads(name, factor):
    rule, x = ROWS[name].make(1, 9), draw()
    before, after = reduced(rule, x), reduced(rule, factor * x)
    if ROWS[name].scales == "signed":
        np.testing.assert_allclose(after, factor * before, rtol=1e-4, atol=1e-5)
    elif ROWS[name].scales == "free" and factor > 0:
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    elif factor > 1:
        assert np.abs(after - factor * before).max() > 0.1


@EACH
def test_what_all_send_to_the_last_bit(name):
    rule = ROWS[name].make(1, 9)
    one = draw(1, seed=2)[0]
    found = reduced(rule, np.stack([one] * 9))
    if ROWS[name].repeats:
        np.testing.assert_array_equal(found, one)
    else:
        assert not np.array_equal(found, one)


@EACH
@pytest.mark.parametrize("f", [1, 2])
def test_breakdown(name, f):
    """Liars as large as you like, wherever they sit: within twice the honest ones' box."""
    row = ROWS[name]
    m = row.least(f)
    rule, honest = row.make(f, m), draw(m - f, seed=1) + 1
    sizes = itertools.product([1e3, -1e8, 1e20, -3e38], repeat=f)
    cases = []
    for liars, size in itertools.product(itertools.combinations(range(m), f), sizes):
        x = np.zeros((m, D), np.float32)
        x[[k for k in range(m) if k not in liars]] = honest
        x[list(liars)] = np.array(size)[:, None]
        cases.append(x)

    def largest(x):
        values = {"a": x[:, :2], "b": x[:, 2:, None]}
        uploads = robust.Uploads(values, jnp.ones(m, bool), jnp.ones(m))
        state = rule.init(as_tree(jnp.zeros(D)))
        value = rule.reduce(uploads, state, as_tree(ROOT)).value
        return jnp.max(jnp.abs(jnp.concatenate([value["a"], value["b"][:, 0]])))

    found = np.asarray(jax.jit(jax.vmap(largest))(np.stack(cases)))
    reach = max(3.0, 2 * np.abs(honest).max())
    if row.breaks:
        assert found.max() > 10 * reach
    else:
        assert np.isfinite(found).all()
        assert found.max() <= reach


@EACH
def test_who_is_not_accepted_changes_nothing(name):
    """The number of uploads is traced: one program for all of them."""
    rule, x, traces = ROWS[name].make(1, 9), draw(12), []
    x = np.concatenate([x[:9], 1e6 * x[9:]])

    @jax.jit
    def value(uploads):
        traces.append(1)
        state = rule.init(as_tree(np.zeros(D, np.float32)))
        return rule.reduce(uploads, state, as_tree(ROOT)).value

    for n in (9, 8, 7):
        accepted = np.zeros(12, bool)
        accepted[:n] = True
        np.random.default_rng(n).shuffle(accepted)
        spread = np.full((12, D), 7e5, np.float32)
        spread[accepted] = x[:n]
        found = as_vector(value(uploads_of(spread, accepted)))
        expected = reduced(rule, x[:n])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


@EACH
def test_nobody(name):
    found = reduced(ROWS[name].make(1, 9), draw(), accepted=np.zeros(9, bool))
    assert np.isfinite(found).all()


@EACH
def test_blocks_change_nothing(name, monkeypatch):
    rule, x = ROWS[name].make(1, 9), draw(d=23)
    root = np.resize(ROOT, 23)
    whole = reduced(rule, x, root=root)
    monkeypatch.setattr(blocks, "BLOCK", 4)
    cut = reduced(rule, x, root=root)
    np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-6)


# What they become


REDUCE_TO_MEAN = {
    "trimmed_mean(0)": robust.trimmed_mean(0.0),
    "multi_krum(kept=m)": robust.multi_krum(0, kept=9),
    "bulyan(0)": robust.bulyan(0),
    "geometric_median(0 iterations)": robust.geometric_median(iterations=0),
    "geometric_median(smooth)": robust.geometric_median(smoothing=1e6),
    "centred_clipping(inf)": robust.centred_clipping(float("inf")),
    "norm_bound(inf)": robust.norm_bound(float("inf")),
}


@pytest.mark.parametrize("name", REDUCE_TO_MEAN)
def test_becomes_the_mean(name):
    x = draw()
    found = reduced(REDUCE_TO_MEAN[name], x)
    np.testing.assert_allclose(found, x.mean(0, dtype=np.float64), rtol=1e-5, atol=1e-6)


def test_the_median_of_two_is_the_mean_and_of_an_even_number_that_in_the_middle():
    for m in (1, 2, 4, 5):
        x = draw(m)
        np.testing.assert_allclose(
            reduced(robust.coordinate_median(), x), np.median(x, axis=0), rtol=1e-6
        )


def test_the_widest_trim_is_the_median():
    x = draw(7)
    found = reduced(robust.trimmed_mean(3 / 7), x)
    np.testing.assert_allclose(found, np.median(x, axis=0), rtol=1e-6)


def test_weights_count_where_they_are_taken():
    x, w = draw(5), np.array([1.0, 2, 3, 4, 0.5])
    expected = (w[:, None] * x).sum(0) / w.sum()
    for rule in (robust.mean(), robust.geometric_median(iterations=0)):
        np.testing.assert_allclose(
            reduced(rule, x, weights=w), expected, rtol=1e-5, atol=1e-6
        )
    heavy = np.array([0.1, 0.1, 5.0, 0.1, 0.1])
    found = reduced(robust.geometric_median(iterations=200), x, weights=heavy)
    np.testing.assert_allclose(found, x[2], atol=1e-3)


def test_each_leaf_by_itself():
    """Krum takes one client's message whole, or one client a leaf."""
    x = draw()
    rule = robust.krum(1)
    found = reduced(robust.by_leaf(rule), x)
    first, second = x[krum_of(x[:, :2], 1)[0], :2], x[krum_of(x[:, 2:], 1)[0], 2:]
    np.testing.assert_array_equal(found, np.concatenate([first, second]))
    assert not np.array_equal(found, reduced(rule, x))


# In numpy, with loops


def krum_of(x, f, among=None):
    """Who is left, the best first, in exact float64."""
    among = list(range(len(x))) if among is None else among
    scores = {}
    for i in among:
        gaps = sorted(
            float(((x[i].astype(np.float64) - x[j]) ** 2).sum())
            for j in among
            if j != i
        )
        scores[i] = sum(gaps[: max(1, len(among) - f - 2)])
    return sorted(among, key=lambda i: (scores[i], i))


@pytest.mark.parametrize("seed", range(5))
def test_krum_is_the_loop(seed):
    x = draw(9, 3, seed)
    best = krum_of(x, 1)
    np.testing.assert_array_equal(reduced(robust.krum(1), x, root=ROOT[:3]), x[best[0]])
    for kept in (2, 5):
        found = reduced(robust.multi_krum(1, kept=kept), x, root=ROOT[:3])
        np.testing.assert_allclose(found, x[best[:kept]].mean(0), rtol=1e-5, atol=1e-6)


def test_equal_scores_go_to_the_first():
    x = np.zeros((5, D), np.float32)
    x[:, 0] = [1, 2, 1, 2, 9]
    assert reduced(robust.krum(1), x)[0] == 1


@pytest.mark.parametrize("seed", range(5))
def test_bulyan_is_the_loop(seed):
    m, f, x = 9, 1, draw(9, 3, seed)
    left, selected = list(range(m)), []
    for _ in range(m - 2 * f):
        winner = krum_of(x, f, left)[0]
        selected.append(winner)
        left.remove(winner)
    expected = []
    for j in range(3):
        column = sorted(float(x[k, j]) for k in selected)
        median = np.median(column)
        nearest = sorted(column, key=lambda v: abs(v - median))[: m - 4 * f]
        expected.append(sum(nearest) / len(nearest))
    found = reduced(robust.bulyan(f), x, root=ROOT[:3])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_geometric_median_is_the_loop():
    x, w, nu = draw(7), np.array([1, 2, 1, 3, 1, 1, 2.0]), 1e-4
    p, z = w / w.sum(), None
    z = p @ x.astype(np.float64)
    objectives = []
    for _ in range(4):
        gaps = np.linalg.norm(x - z, axis=1)
        objectives.append((p * gaps).sum())
        beta = p / np.maximum(nu, gaps)
        z = beta @ x / beta.sum()
    rule = robust.geometric_median(iterations=4, smoothing=nu)
    np.testing.assert_allclose(reduced(rule, x, weights=w), z, rtol=1e-4, atol=1e-5)
    assert all(np.diff(objectives) <= 1e-12)


def test_the_geometric_median_turns_with_the_uploads():
    x = draw(7)
    turn, _ = np.linalg.qr(draw(D, seed=3).astype(np.float64))
    rule = robust.geometric_median()
    found = reduced(rule, (x @ turn).astype(np.float32))
    np.testing.assert_allclose(found, reduced(rule, x) @ turn, rtol=1e-4, atol=1e-5)


def test_the_geometric_median_on_a_line_is_the_median():
    x = np.zeros((5, D), np.float32)
    x[:, 1] = [0.0, 1.0, 2.5, 7.0, 40.0]
    found = reduced(robust.geometric_median(iterations=400), x)
    assert found[1] == pytest.approx(2.5, abs=0.02)


def test_centred_clipping_is_the_loop_and_keeps_its_centre():
    rule, x, v = robust.centred_clipping(1.5, iterations=3), draw(), np.zeros(D)
    state = rule.init(as_tree(np.zeros(D, np.float32)))
    for seed in (0, 1):
        x = draw(seed=seed)
        for _ in range(3):
            gaps = x.astype(np.float64) - v
            norms = np.linalg.norm(gaps, axis=1, keepdims=True)
            step = (gaps * np.minimum(1, 1.5 / norms)).mean(0)
            assert np.linalg.norm(step) <= 1.5
            v = v + step
        found = rule.reduce(uploads_of(x), state, None)
        state = found.state
        np.testing.assert_allclose(as_vector(found.value), v, rtol=1e-5, atol=1e-6)


def test_liars_move_the_centre_by_their_share_of_the_radius():
    x, y = draw(), draw()
    y[:2] = 1e6
    rule = robust.centred_clipping(1.0)
    moved = np.linalg.norm(reduced(rule, x) - reduced(rule, y))
    assert 0.01 < moved <= 2 * 2 / 9 * 1.0 + 1e-6


def test_the_norm_bound_is_the_clip_of_private_averaging():
    x = draw()
    clipped = [as_vector(privacy.clip(as_tree(row), 1.0)[0]) for row in x]
    found = reduced(robust.norm_bound(1.0), x)
    np.testing.assert_allclose(found, np.mean(clipped, axis=0), rtol=1e-5, atol=1e-6)


def test_fltrust_is_the_loop():
    x, g = draw().astype(np.float64), ROOT.astype(np.float64)
    total, trust = np.zeros(D), 0.0
    for row in x:
        t = max(0.0, row @ g / np.linalg.norm(row) / np.linalg.norm(g))
        total += t * np.linalg.norm(g) / np.linalg.norm(row) * row
        trust += t
    rule = robust.fltrust({"x": np.zeros(1)})
    found = reduced(rule, x)
    np.testing.assert_allclose(found, total / trust, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(found) <= np.linalg.norm(g)
    each = np.linspace(0.1, 30, 9)[:, None]  # lengths say nothing
    np.testing.assert_allclose(reduced(rule, each * x), found, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(reduced(rule, np.stack([-g] * 3)), ROOT)
    np.testing.assert_allclose(reduced(rule, np.stack([g] * 3)), ROOT, rtol=1e-6)


def test_the_majority_is_the_loop():
    x = draw(8)
    x[:, 0] = [1, 1, 1, 1, -1, -1, -1, -1]
    x[:, 1] = [0, 0, 0, 0, 0, -1, -1, -1]  # zeros vote for the positive side
    votes = np.where(x >= 0, 1, -1).sum(0)
    found = reduced(robust.sign_majority(0.5), x)
    np.testing.assert_array_equal(found, 0.5 * np.sign(votes))
    assert found[0] == 0
    assert found[1] == 0.5


def test_distances_keep_their_digits_far_from_zero():
    """Of what all uploads have in common nothing is left; one liar does not bring it back."""
    x = draw(6) + 1e4
    x[5] = 1e20
    found = np.sqrt(distances.squared_distances(distances.gram_of(uploads_of(x))))[
        :5, :5
    ]
    expected = np.linalg.norm(x[:5, None].astype(np.float64) - x[None, :5], axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
