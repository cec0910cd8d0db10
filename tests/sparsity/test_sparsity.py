"""Masks, scores and schedules against sorts, loops and closed forms in numpy."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm import channels, sparsity
from fedjax_fm.sparsity import Layers

RNG = np.random.default_rng(0)
TREE = {
    "a": {"kernel": RNG.normal(size=(4, 6)).astype("f4"), "bias": np.ones(6, "f4")},
    "layer": {
        "kernel": RNG.normal(size=(3, 4, 5)).astype("f4"),
        "bias": np.ones((3, 5), "f4"),
    },
}
STACKED = Layers(stacked=r"^layer\.")
WEIGHTS = STACKED.weights(TREE)


def largest(row, k):
    """bool[n] by a stable sort: ties go to the lowest index."""
    mask = np.zeros(row.size, bool)
    mask[np.argsort(-row, kind="stable")[:k]] = True
    return mask


def test_which_leaves_are_pruned():
    assert set(WEIGHTS) == {"a.kernel", "layer.kernel"}
    assert "layer.bias" in Layers().weights(TREE)  # it has two axes
    assert set(Layers(pruned=r"^a\.").weights(TREE)) == {"a.kernel", "a.bias"}
    changed = sparsity.put(TREE, {"a.kernel": jnp.zeros((4, 6))})
    assert not np.any(changed["a"]["kernel"])
    assert changed["layer"] == TREE["layer"]
    with pytest.raises(ValueError, match=r"pruned='x' names no leaf of a\.bias"):
        Layers(pruned="x").weights(TREE)
    with pytest.raises(TypeError, match="stacked=3"):
        Layers(stacked=3).checked()  # pyright: ignore
    with pytest.raises(ValueError, match=r"pruned='\('"):
        Layers(pruned="(").checked()


@pytest.mark.parametrize("k", [0, 1, 3, 5, 7, 9, 10, 12])
def test_largest_by_value_as_a_stable_sort_has_them(k):
    """Positive, zero and negative entries, with ties, denormals and infinity."""
    values = [2.0, -1.0, 0.0, 2.0, -np.inf, 1e-40, -0.0, -1.0, np.inf, -1e-40]
    x = np.array(values, "f4")
    top = jax.jit(sparsity.top_of_vectors)  # k is traced
    first, second = top((x[:4], x[4:]), k)
    np.testing.assert_array_equal(np.r_[first, second], largest(x, k))


def test_nan_is_kept_last():
    x = jnp.array([jnp.nan, -5.0, 1.0])
    (mask,) = sparsity.top_of_vectors((x,), 2)
    assert mask.tolist() == [False, True, True]


@functools.partial(jax.jit, static_argnums=2)
def top(scores, density, scope):
    """One program for all densities."""
    return sparsity.top_masks(scores, density, STACKED, scope=scope)


@pytest.mark.parametrize("density", [0.25, 0.5, 1.0])
def test_thresholds_of_each_layer_and_of_all(density):
    scores = sparsity.magnitude(WEIGHTS)
    found = top(scores, density, "layer")
    for name, rows in (("a.kernel", 1), ("layer.kernel", 3)):
        flat = np.abs(np.asarray(WEIGHTS[name])).reshape(rows, -1)
        k = flat.shape[1] - math.floor((1 - density) * flat.shape[1] + 0.5)
        expected = [largest(row, k) for row in flat]
        np.testing.assert_array_equal(found[name].reshape(rows, -1), expected)
    together = top(scores, density, "global")
    flat = np.concatenate([np.abs(np.ravel(leaf)) for leaf in WEIGHTS.values()])
    k = flat.size - math.floor((1 - density) * flat.size + 0.5)
    kept = np.concatenate([np.ravel(mask) for mask in together.values()])
    np.testing.assert_array_equal(kept, largest(flat, k))


def test_a_traced_density_keeps_as_many_as_one_that_is_not():
    for n, density in itertools.product((1, 7, 100), (0.07, 0.5, 0.93, 1.0)):
        traced = jax.jit(sparsity.kept_count, static_argnums=1)(density, n)
        assert int(traced) == sparsity.kept_count(density, n)


def test_no_layer_dies():
    scores = {"a": jnp.array([9.0, 8.0]), "b": jnp.array([0.0, 0.1, -2.0])}
    for scope in ("layer", "global"):
        masks = sparsity.top_masks(scores, 0.2, scope=scope)
        assert masks["a"].tolist() == [True, False]
        assert masks["b"].tolist() == [False, True, False]
    soft = sparsity.sigmoid_masks({"w": jnp.array([-5.0, -4.0])}, 0.5)
    assert soft["w"].tolist() == [False, True]


def test_masks_within_masks_are_nested():
    weights = {"w": jnp.array([0.0, 0.0, 0.0, 3.0, 0.0, 2.0])}  # ties at zero
    before = {"w": jnp.array([False, True, False, True, True, True])}
    scores = sparsity.magnitude(weights)
    after = sparsity.top_masks(scores, 0.5, within=before)["w"]
    assert after.tolist() == [False, True, False, True, False, True]


def test_random_scores_are_the_keys_alone():
    key = jax.random.key(3)
    first = sparsity.random(WEIGHTS, key)
    zeros = {name: jnp.zeros_like(leaf) for name, leaf in WEIGHTS.items()}
    jax.tree.map(np.testing.assert_array_equal, first, sparsity.random(zeros, key))
    assert np.ptp(first["a.kernel"]) > 0.5


def test_masked_out_nan_does_no_harm_and_densities_are_shares():
    tree = {"w": jnp.array([[jnp.nan, 2.0]]), "b": jnp.ones(2)}
    masks = {"w": jnp.array([[False, True]])}
    kept = sparsity.masked(tree, masks)
    assert kept["w"].tolist() == [[0, 2]]
    assert kept["b"].tolist() == [1, 1]
    masks["v"] = jnp.ones(6, bool)
    found = {name: float(x) for name, x in sparsity.densities(masks).items()}
    expected = {"density": 7 / 8, "density w": 0.5, "density v": 1}
    assert found == pytest.approx(expected)


def test_movement_gradients_and_their_sum_over_steps():
    """dL/dS = g W and dL/dW = g M entry by entry; S = -a sum_t g_t W_t."""
    weight, g = RNG.normal(size=(2, 4, 3)).astype("f4")
    mask = RNG.random((4, 3)) < 0.5

    def loss(weight, score):
        return jnp.sum(g * sparsity.straight_through(weight, score, mask))

    score = RNG.normal(size=(4, 3)).astype("f4")
    of_weight, of_score = jax.grad(loss, (0, 1))(weight, score)
    np.testing.assert_array_equal(of_weight, g * mask)
    np.testing.assert_array_equal(of_score, g * weight)
    away = weight * g < 0  # a step of descent moves these away from zero
    np.testing.assert_array_equal(-of_score > 0, away)
    kept = sparsity.straight_through(weight, score, mask)
    np.testing.assert_array_equal(kept, np.where(mask, weight, 0))
    rate, total, first = 0.1, np.zeros((4, 3)), score
    w = jnp.asarray(weight)
    for _ in range(3):
        slope = 2 * (np.where(mask, w, 0) - 1)  # of sum (W' - 1)^2

        def square(w, s):
            return jnp.sum((sparsity.straight_through(w, s, mask) - 1) ** 2)

        of_w, of_s = jax.grad(square, (0, 1))(w, score)
        total -= rate * slope * w
        score, w = score - rate * of_s, w - 0.05 * of_w
    np.testing.assert_allclose(score - first, total, atol=1e-5)


def test_soft_threshold_and_its_penalty():
    scores = {"w": jnp.array([[-30.0, -1.0], [0.0, 4.0]])}
    assert sparsity.sigmoid_masks(scores, 0.0)["w"].all()
    assert sparsity.sigmoid_masks(scores, 0.5)["w"].tolist() == [
        [False, False],
        [False, True],
    ]
    sigmoid = 1 / (1 + np.exp(-np.array([-30, -1, 0, 4])))
    assert float(sparsity.score_penalty(scores)) == pytest.approx(sigmoid.mean())


def test_a_blocks_gradient_is_the_sum_over_the_block():
    g = RNG.normal(size=(2, 4, 6)).astype("f4")
    weight = RNG.normal(size=(2, 4, 6)).astype("f4")
    counts = sparsity.block_shape("w", (2, 4, 6), (2, 3))
    assert counts == (2, 2, 2)

    def loss(blocks):
        score = sparsity.expand_blocks(blocks, g.shape)
        mask = jnp.ones(g.shape, bool)
        return jnp.sum(g * sparsity.straight_through(weight, score, mask))

    found = jax.grad(loss)(jnp.zeros(counts))
    for i, r, c in np.ndindex(counts):
        block = (i, slice(2 * r, 2 * r + 2), slice(3 * c, 3 * c + 3))
        expected = np.sum(g[block] * weight[block])
        assert float(found[i, r, c]) == pytest.approx(expected, abs=1e-5)
        mean = sparsity.block_means(jnp.abs(weight), counts)[i, r, c]
        assert float(mean) == pytest.approx(np.abs(weight[block]).mean(), rel=1e-5)
    assert sparsity.block_shape("w", (4, 6), (0, 1)) == (1, 6)
    with pytest.raises(ValueError, match=r"blocks of 3 x 2 do not divide w .*\[4, 6\]"):
        sparsity.block_shape("w", (4, 6), (3, 2))
    with pytest.raises(ValueError, match="no rows and columns"):
        sparsity.block_shape("w", (4,), (1, 1))
    with pytest.raises(TypeError, match="block=4"):
        sparsity.block_shape("w", (4, 4), 4)  # pyright: ignore


def test_cubic_schedule():
    schedule = sparsity.cubic(0.9, first=5, last=25, every=4, initial_sparsity=0.1)
    found = np.array([float(schedule(t)) for t in range(30)])
    assert found[:6] == pytest.approx(0.1)
    assert found[25:] == pytest.approx(0.9)
    assert (np.diff(found) >= 0).all()
    for n in range(6):
        at = 0.9 + (0.1 - 0.9) * (1 - n / 5) ** 3
        assert found[5 + 4 * n : min(9 + 4 * n, 30)] == pytest.approx(at)
    fine = sparsity.cubic(0.9, first=0, last=10**6)
    slope = (float(fine(10**6)) - float(fine(10**6 - 10**3))) / 1e-3
    assert abs(slope) < 1e-3  # flat at the end


def test_cosine_schedule():
    schedule = sparsity.cosine_share(0.15, 20)
    for t in range(21):
        expected = 0.15 * (1 + math.cos(math.pi * t / 20))
        assert float(schedule(t)) == pytest.approx(expected, abs=1e-6)
    assert float(schedule(33)) == 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"last": 3}, "from first=5 to last=3 ends before it starts"),
        ({"last": 10, "every": 2}, "multiple of every=2"),
        ({"final_sparsity": 1.0}, "final_sparsity=1.0"),
        ({"final_sparsity": 0.1, "initial_sparsity": 0.2}, "final_sparsity=0.1"),
    ],
)
def test_schedules_that_make_no_sense(how, message):
    with pytest.raises(ValueError, match=message):
        sparsity.cubic(**({"final_sparsity": 0.5, "first": 5, "last": 9} | how))


@pytest.mark.parametrize("density", [0, 1.2, -0.1, math.nan, True, "0.5"])
def test_densities_that_make_no_sense(density):
    with pytest.raises((ValueError, TypeError), match=f"density={density}|density='"):
        sparsity.top_masks({"w": jnp.ones(3)}, density)


def test_kept_entries_travel_without_the_others():
    masks = {"a.kernel": RNG.random((4, 6)) < 0.3, "layer.kernel": RNG.random((3, 4, 5)) < 0.6}  # fmt: skip
    masks["a.kernel"][:] = False  # even none at all
    packed = sparsity.pack_kept(TREE, masks)
    back = sparsity.unpack_kept(packed, masks)
    expected = sparsity.masked(TREE, masks)
    jax.tree.map(np.testing.assert_array_equal, back, expected)
    n_kept = sum(mask.sum() for mask in masks.values())
    assert int(channels.payload_bits(packed)) == 32 * (n_kept + 6 + 15)
    bits = sparsity.pack_masks(masks)
    assert channels.payload_bits(bits) == 88  # 84 flags
    held = sparsity.unpack_masks(bits, dict(reversed(WEIGHTS.items())))
    jax.tree.map(np.testing.assert_array_equal, held, masks)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 4), (4, 16)])
def test_vector_wise_is_the_best_of_all_patterns(n, m):
    x = RNG.normal(size=(3, 2 * m)).astype("f4")
    mask = np.asarray(sparsity.vector_wise_mask(x, n, m))
    groups, flags = x.reshape(-1, m), mask.reshape(-1, m)
    assert (flags.sum(1) == n).all()
    for row, kept in zip(groups, flags, strict=True):
        sums = [sum(row[list(c)] ** 2) for c in itertools.combinations(range(m), n)]
        assert sum(row[kept] ** 2) == pytest.approx(max(sums), rel=1e-6)
        assert max(sums) >= n / m * sum(row**2) * (1 - 1e-6)
    packed = sparsity.pack_vector_wise(x, n, m)
    kept = np.where(mask, x, 0)
    np.testing.assert_array_equal(sparsity.unpack_vector_wise(packed), kept)
    n_bits = max(1, math.ceil(math.log2(math.comb(m, n))))
    of_patterns = math.ceil(len(groups) * n_bits / 8) * 8
    assert channels.payload_bits(packed) == len(groups) * n * 32 + of_patterns
    y = RNG.normal(size=(2 * m, 3)).astype("f4")
    product = sparsity.unpack_vector_wise(packed) @ y
    np.testing.assert_allclose(product, kept @ y, rtol=1e-5, atol=1e-5)


def test_vector_wise_along_another_axis_with_ties():
    x = jnp.ones((4, 3)).at[3, 1].set(-2.0)
    mask = sparsity.vector_wise_mask(x, 2, 4, axis=0)
    assert mask[:, 0].tolist() == [True, True, False, False]
    assert mask[:, 1].tolist() == [True, False, False, True]
    packed = sparsity.pack_vector_wise(x, 2, 4, axis=0)
    np.testing.assert_array_equal(
        sparsity.unpack_vector_wise(packed), jnp.where(mask, x, 0)
    )


@pytest.mark.parametrize(
    ("n", "m", "message"),
    [(2, 5, r"groups of m=5 do not divide axis -1 of shape \[2, 8\]"), (5, 4, "n=5"), (0, 4, "n=0"), (16, 32, "patterns")],
)  # fmt: skip
def test_vector_wise_that_makes_no_sense(n, m, message):
    with pytest.raises(ValueError, match=message):
        sparsity.vector_wise_mask(jnp.ones((2, 8)), n, m)
