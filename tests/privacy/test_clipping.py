"""The bound on one client's contribution holds in every type and range, and noise meets
the sum before anything is rounded.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.dp_fedavg import dp_fedavg
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.population import samplers
from fedjax_fm.privacy import binary_tree, clip, clipped_mean, independent
from fedjax_fm.types import Aggregate, Setting

SETTING = Setting(100, 10)


def norm_of(tree):
    return float(
        np.sqrt(
            sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree))
        )
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_enters_the_sum_is_within_the_norm_whatever_the_type(dtype):
    """A factor rounded to bfloat16 is off by up to 0.4 %, and so was the norm."""
    reduce, rng = clipped_mean(lambda norm: norm), np.random.default_rng(0)
    for seed in range(40):
        norm = jnp.float32(rng.uniform(0.1, 3))
        sent = {
            "a": jnp.asarray(rng.normal(size=(5, 7)), dtype),
            "b": jnp.asarray(rng.normal(size=11), dtype),
        }
        lifted, _ = reduce.lift(norm, sent, jnp.float32(1))
        assert norm_of(lifted) <= float(norm) * (1 + 1e-6), seed
        exact = min(1.0, float(norm) / norm_of(sent))
        for name, leaf in sent.items():
            np.testing.assert_allclose(
                lifted[name], exact * np.asarray(leaf, np.float64), rtol=1e-5
            )
        assert all(
            leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(lifted)
        )  # and is added up so


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e-15, 1.0, 1e15, 1e25])
def test_lengths_whose_squares_leave_the_range_of_floats_are_clipped_too(scale):
    tree = {"a": jnp.asarray(np.array([3.0, 0.0, 4.0]) * scale, jnp.float32)}
    clipped, within = clip(tree, jnp.float32(2.5 * scale))
    assert not within
    np.testing.assert_allclose(
        np.asarray(clipped["a"], np.float64), np.array([1.5, 0, 2.0]) * scale, rtol=1e-5
    )
    same, within = clip(tree, jnp.float32(6 * scale))
    assert within
    np.testing.assert_array_equal(same["a"], tree["a"])


def test_a_tree_in_float64_keeps_its_digits():
    with jax.enable_x64(True):
        tree = {"a": jnp.asarray([np.pi, np.e])}
        np.testing.assert_array_equal(clip(tree, jnp.inf)[0]["a"], tree["a"])
        exact = np.array([np.pi, np.e]) / np.hypot(np.pi, np.e)
        np.testing.assert_allclose(clip(tree, 1.0)[0]["a"], exact, rtol=1e-6)


@pytest.mark.parametrize("norm", [np.nan, -1.0])
def test_a_traced_norm_that_is_none_gives_zeros(norm):
    """A bound that is no number must not switch the clip off."""
    clipped, within = jax.jit(clip)({"a": jnp.ones(3)}, jnp.float32(norm))
    assert not np.asarray(clipped["a"]).any()
    assert not within


@pytest.mark.parametrize("norm", [0.0, 1e-38, 1.0, 3e38, np.inf])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e-38, 1.0, 3e38])
def test_every_norm_bounds_every_value(norm, value):
    tree = {"a": jnp.array([value, 1.0], jnp.float32)}
    clipped, within = clip(tree, jnp.float32(norm))
    assert np.isfinite(np.asarray(clipped["a"])).all()
    assert norm_of(clipped) <= norm * (1 + 1e-6)
    assert bool(within) == (np.isfinite(value) and np.hypot(value, 1.0) <= norm)


def test_a_client_that_is_not_finite_counts_as_one_who_was_too_long():
    reduce = clipped_mean(lambda norm: norm)
    good = reduce.lift(1.0, {"w": jnp.array([2.0, 0.0])}, jnp.float32(1))
    for bad in (np.nan, np.inf, -np.inf):
        lifted, count = reduce.lift(1.0, {"w": jnp.array([bad, 0.0])}, jnp.float32(1))
        assert not np.asarray(lifted["w"]).any()
        assert float(count) == float(good[1]) == -0.5


def test_the_weight_of_a_client_changes_nothing():
    reduce = clipped_mean(lambda norm: norm)
    one, many = (
        reduce.lift(1.0, {"w": jnp.array([2.0, 0.0])}, jnp.float32(w))
        for w in (1.0, 1e6)
    )
    jax.tree.map(np.testing.assert_array_equal, one, many)


def recorder(seen):
    def update(updates, state, params=None):
        seen.append(updates)
        return jax.tree.map(jnp.zeros_like, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def test_noise_meets_the_sum_before_it_is_rounded():
    """A delta in bfloat16: mean and noise are added in float32 and rounded once; a mean
    that is rounded first moves by whole steps, which is more than the sensitivity."""
    seen, rng = [], np.random.default_rng(0)
    algorithm = dp_fedavg(
        ffm.Task(mlp_loss),
        optax.sgd(0.1),
        recorder(seen),
        noise=independent(),
        noise_multiplier=0.01,
        clip_norm=3.0,
        local_steps=1,
        batch_size=4,
    )
    delta = {"w": jnp.zeros(500, jnp.bfloat16)}
    state = algorithm.init(delta, jax.random.key(0), SETTING)
    (exchange,) = algorithm.exchanges
    sent = [rng.normal(size=500).astype(np.float32) / 10 for _ in range(7)]
    sent = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in sent]
    lifted = [
        exchange.reduce.lift(state, {"w": jnp.asarray(x, jnp.bfloat16)}, jnp.float32(1))
        for x in sent
    ]
    value = exchange.reduce.finish(
        jax.tree.map(lambda *leaves: sum(leaves), *lifted), SETTING
    )
    after, _ = exchange.server(state, Aggregate(value, jnp.int32(7)), jax.random.key(0))
    assert after.delta["w"].dtype == seen[0]["w"].dtype == jnp.bfloat16
    increment, _ = independent().draw(state.noise)
    total = sum(x * min(1.0, 3.0 / np.linalg.norm(x)) for x in sent)
    expected = (total + 0.01 * 3.0 * np.asarray(increment["w"], np.float64)) / 10
    found = np.asarray(seen[0]["w"], np.float64)
    step = np.exp2(np.floor(np.log2(np.abs(expected))) - 7)  # of bfloat16, eight digits
    assert (np.abs(found - expected) <= 0.501 * step).all()


def test_many_small_clients_in_bfloat16_are_added_up_in_float32():
    """300 equal updates: a bfloat16 sum stands still at 256 of them."""
    n = 300
    population = ffm.Population.from_clients([{"x": np.ones(1, np.float32)}] * n)
    task = ffm.Task(
        lambda delta, backbone, batch, key: (batch["x"] * jnp.sum(delta["w"]), {})
    )
    algorithm = dp_fedavg(
        task,
        optax.sgd(1.0),
        noise=independent(),
        noise_multiplier=0.0,
        clip_norm=1e3,
        local_steps=1,
        batch_size=1,
    )
    everyone = samplers.fixed(list(range(n)))
    one = ffm.Simulator(
        algorithm, population, cohort_size=n, sampler=everyone, devices=1, block_size=1
    )
    state, _ = one.run(one.init({"w": jnp.zeros(3, jnp.bfloat16)}), 1)
    np.testing.assert_allclose(
        np.asarray(state.delta["w"], np.float64), -1.0, rtol=1e-2
    )


def data_of(keys):
    return {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}


@pytest.mark.parametrize(
    "noise", [independent(), binary_tree(4)], ids=["independent", "tree"]
)
def test_no_key_of_the_noise_is_used_for_anything_else(noise):
    """The engine names its keys by round and purpose; noise that shares one of them can
    be told from a cohort's size.
    """
    algorithm = dp_fedavg(
        ffm.Task(mlp_loss),
        optax.sgd(0.1),
        noise=noise,
        noise_multiplier=1.0,
        clip_norm=1.0,
        local_steps=1,
        batch_size=4,
    )
    rounds = range(12)
    for seed in range(3):
        key = jax.random.key(seed)
        state = algorithm.init({"w": jnp.zeros(3)}, derive(key, Purpose.INIT), SETTING)
        own = [state.noise.key, state.count_key]
        own += [jax.random.fold_in(k, t) for k in own[:2] for t in rounds]
        others = [key]
        for purpose in Purpose:
            others.append(derive(key, purpose))
            others += [derive(key, purpose, client) for client in range(12)]
        for t in rounds:
            round_key = jax.random.fold_in(key, t)
            others.append(round_key)
            for purpose in Purpose:
                mine = derive(round_key, purpose)
                others += [
                    mine,
                    *jax.random.split(mine),
                    *(jax.random.fold_in(mine, k) for k in range(12)),
                ]
        assert not data_of(own) & data_of(others)
