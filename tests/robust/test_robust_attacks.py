"""What liars send, in numpy, and what stays as it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quadratics
from scipy.stats import norm

import fedjax_fm as ffm
from fedjax_fm import evaluation, robust
from fedjax_fm.robust import attacks

FEDAVG = ffm.fedavg(quadratics.TASK, optax.sgd(0.1), **quadratics.FULL)
MEAN = robust.robust(FEDAVG, robust.mean())
EVERY = {
    "sign_flip": attacks.sign_flip(3.0),
    "gaussian": attacks.gaussian(2.0),
    "added": attacks.gaussian(2.0, added=True),
    "boosted": attacks.boosted(5.0, most_norm=2.0),
    "replacement": attacks.replacement(jnp.ones(quadratics.D), scale=2.0),
    "alie": attacks.alie(),
    "ipm": attacks.ipm(0.5),
    "min_max": attacks.min_max(),
    "min_sum": attacks.min_sum("sign"),
}
X = np.random.default_rng(4).normal(size=(9, 5)).astype(np.float32) + 0.7


def seen(x=X, liars=2):
    """The first rows are honest clients', the last the liars'."""
    visible = np.arange(len(x)) < len(x) - liars
    values = [jnp.where(visible[:, None], x, 0)]
    return attacks.Seen(
        values=values, visible=jnp.asarray(visible), n=len(x), n_liars=liars
    )


def told(attack, **how):
    return np.asarray(attack.together(seen(**how))[0], np.float64)


def server(state):
    """The trainable tree; the state around it is the rule's."""
    return np.asarray(state.delta)


# Who lies, and who does not


@pytest.mark.parametrize("name", sorted(EVERY))
def test_no_liars_are_no_attack_to_the_last_bit(name):
    attacked = attacks.attacked(MEAN, EVERY[name], [])
    plain, attack = quadratics.run(MEAN, 3), quadratics.run(attacked, 3)
    np.testing.assert_array_equal(server(plain[0]), server(attack[0]))
    for key, value in plain[1].items():
        np.testing.assert_array_equal(value, attack[1][key])


@pytest.mark.parametrize("name", sorted(EVERY))
def test_honest_uploads_stay_and_everyone_is_billed(name):
    """A rule that hands out the uploads of one client after the other."""

    def of_client(k):
        def reduce(uploads, state, reference):
            return robust.Reduced(jax.tree.map(lambda x: x[k], uploads.values))

        return robust.Rule(reduce)

    for k in (0, 1, 2):
        method = robust.robust(FEDAVG, of_client(k))
        attacked = attacks.attacked(method, EVERY[name], [1, 4])
        honest, metrics = quadratics.run(method, 1)
        state, billed = quadratics.run(attacked, 1)
        same = np.array_equal(server(honest), server(state))
        assert same == (k != 1)
        for key in ("uplink_bytes", "downlink_bytes", "clients", "loss"):
            np.testing.assert_array_equal(metrics[key], billed[key])


def test_a_share_of_liars():
    found = attacks.liars_of(50, 0.2, seed=3)
    assert len(set(found)) == 10
    assert min(found) >= 0
    assert max(found) < 50
    assert found != attacks.liars_of(50, 0.2, seed=4)
    assert attacks.liars_of(50, 0.0) == ()


def test_liars_together_need_uploads_side_by_side():
    with pytest.raises(ValueError, match="put a rule around the method first"):
        attacks.attacked(FEDAVG, attacks.ipm(1.0), [0])
    for liars in ([-1], [0.5]):
        with pytest.raises((TypeError, ValueError), match="liars"):
            attacks.attacked(FEDAVG, attacks.sign_flip(), liars)


def test_liars_that_see_only_themselves():
    """IPM against the mean of the liars' own uploads."""
    rule = robust.robust(FEDAVG, robust.mean())
    method = attacks.attacked(rule, attacks.ipm(2.0), [1, 4], omniscient=False)
    state, _ = quadratics.run(method, 1)
    updates = 0.1 * quadratics.gradients(quadratics.START)
    told = -2.0 * updates[[1, 4]].mean(0)
    updates[[1, 4]] = told
    expected = quadratics.START - updates.mean(0)
    np.testing.assert_allclose(server(state), expected, rtol=1e-5, atol=1e-6)


# Each lie in numpy


def test_alie_is_the_papers():
    assert float(attacks.supported_deviations(25, 11)) == pytest.approx(
        1.0676, abs=5e-5
    )
    honest, n, f = X[:7].astype(np.float64), 9, 2
    supporters = n // 2 + 1 - f
    z = norm.ppf((n - f - supporters) / (n - f))
    expected = honest.mean(0) - z * honest.std(0, ddof=1)
    np.testing.assert_allclose(told(attacks.alie()), expected, rtol=1e-5, atol=1e-6)
    expected = honest.mean(0) - 1.5 * honest.std(0, ddof=1)
    found = told(attacks.alie(deviations=1.5))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scale", "turned"), [(1.9, False), (2.1, True)])
def test_ipm_turns_the_mean_around_beyond_its_bound(scale, turned):
    """Two liars of six: at epsilon > (n - f) / f = 2."""
    method = attacks.attacked(MEAN, attacks.ipm(scale), [1, 4])
    state, _ = quadratics.run(method, 1)
    honest = 0.1 * np.delete(quadratics.gradients(quadratics.START), [1, 4], 0).mean(0)
    expected = quadratics.START - (4 - scale * 2) / 6 * honest
    np.testing.assert_allclose(server(state), expected, rtol=1e-5, atol=1e-6)
    assert (np.dot(server(state) - quadratics.START, honest) > 0) == turned


def directions(honest):
    mean = honest.mean(0)
    return {
        "mean": -mean / np.linalg.norm(mean),
        "sign": -np.sign(mean),
        "deviation": -honest.std(0, ddof=1),
    }


def searched(holds):
    """The largest gamma for which a condition holds, by halving, as the authors do."""
    low, high = 0.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@pytest.mark.parametrize("direction", ["mean", "sign", "deviation"])
def test_min_max_is_the_largest_that_holds(direction):
    honest = X[:7].astype(np.float64)
    mean, p = honest.mean(0), directions(honest)[direction]
    gaps = np.linalg.norm(honest[:, None] - honest[None], axis=2)

    def holds(gamma):
        return np.linalg.norm(mean + gamma * p - honest, axis=1).max() <= gaps.max()

    expected = mean + searched(holds) * p
    found = told(attacks.min_max(direction))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["mean", "sign", "deviation"])
def test_min_sum_is_the_largest_that_holds(direction):
    honest = X[:7].astype(np.float64)
    mean, p = honest.mean(0), directions(honest)[direction]
    squares = ((honest[:, None] - honest[None]) ** 2).sum(2)

    def holds(gamma):
        return ((mean + gamma * p - honest) ** 2).sum() <= squares.sum(1).max()

    expected = mean + searched(holds) * p
    found = told(attacks.min_sum(direction))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sign_flips_and_boosts():
    x = {"w": jnp.array([3.0, 4.0])}
    flipped = attacks.sign_flip(2.0).alone(x, None, None)
    np.testing.assert_array_equal(flipped["w"], [-6, -8])
    longer = attacks.boosted(10.0).alone(x, None, None)
    np.testing.assert_array_equal(longer["w"], [30, 40])
    stealthy = attacks.boosted(10.0, most_norm=10.0).alone(x, None, None)
    np.testing.assert_allclose(stealthy["w"], [6, 8], rtol=1e-6)


def test_noise_of_each_leaf_and_client_is_its_own():
    x = {"a": jnp.ones(20_000), "b": jnp.ones(20_000)}
    lie = attacks.gaussian(0.5).alone
    one, two = lie(x, None, jax.random.key(0)), lie(x, None, jax.random.key(1))
    assert float(one["a"].mean()) == pytest.approx(0, abs=0.02)
    assert float(one["a"].std()) == pytest.approx(0.5, abs=0.02)
    for other in (one["b"], two["a"]):
        assert abs(np.corrcoef(one["a"], other)[0, 1]) < 0.03
    added = attacks.gaussian(0.5, added=True).alone(x, None, jax.random.key(0))
    np.testing.assert_allclose(added["a"], one["a"] + 1, rtol=1e-6)


def test_model_replacement_hits_its_target():
    """All others send zeros: the model is the target exactly."""
    target = jnp.arange(quadratics.D, dtype=jnp.float32)
    still = [
        {"h": np.zeros((1, quadratics.D), np.float32), "a": row["a"]}
        for row in quadratics.clients()
    ]
    lie = attacks.replacement(target, scale=6.0)
    method = attacks.attacked(FEDAVG, lie, [2])
    state, _ = quadratics.run(method, 1, clients=still)
    np.testing.assert_allclose(server(state), target, rtol=1e-6, atol=1e-6)
    bounded = attacks.attacked(robust.robust(FEDAVG, robust.norm_bound(0.3)), lie, [2])
    state, _ = quadratics.run(bounded, 1, clients=still)
    gap = np.asarray(target - quadratics.START)
    expected = quadratics.START + 0.3 * gap / np.linalg.norm(gap) / 6
    np.testing.assert_allclose(server(state), expected, rtol=1e-5, atol=1e-6)


def test_a_target_of_another_form_is_refused():
    lie = attacks.replacement({"w": jnp.zeros(3)}, scale=1.0)
    with pytest.raises(ValueError, match="difference up, like the target"):
        quadratics.run(attacks.attacked(FEDAVG, lie, [0]), 1)


# Data that lie


def test_labels_of_liars_alone_are_flipped():
    clients = [{"x": np.arange(3), "label": np.array([0, 3, 1])} for _ in range(3)]
    population = ffm.Population.from_clients(clients)
    found = attacks.poisoned(population, [1], attacks.relabelled([3, 2, 1, 0]))
    expected = [0, 3, 1, 3, 0, 2, 0, 3, 1]
    assert found.arrays["label"].tolist() == expected
    assert population.arrays["label"].tolist() == [0, 3, 1] * 3
    np.testing.assert_array_equal(found.arrays["x"], population.arrays["x"])


def test_a_backdoor_in_liars_data():
    text = {
        "input_ids": np.array([[5, 6, 7, 0]]),
        "attention_mask": np.array([[1, 1, 1, 0]]),
        "label": np.array([0]),
    }
    population = ffm.Population.from_clients([text, text])
    trigger = evaluation.Trigger(tokens=(99,), target=1)
    change = functools.partial(evaluation.with_trigger, trigger=trigger)
    found = attacks.poisoned(population, [1], change)
    assert found.arrays["input_ids"].tolist() == [[5, 6, 7, 0], [5, 99, 6, 7]]
    assert found.arrays["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: attacks.poisoned(p, [2], attacks.relabelled([0])), "liars"),
        (lambda p: attacks.poisoned(p, [0], lambda x: {}), "keep column 'label'"),
        (lambda p: attacks.poisoned(p, [0], attacks.relabelled([1, 0])), "got 5"),
        (lambda p: attacks.relabelled([]), "list of labels"),
        (lambda p: attacks.relabelled([0.5]), "list of labels"),
        (
            lambda p: attacks.poisoned(p, [0], attacks.relabelled([0], label="y")),
            "a column 'y'",
        ),
    ],
)
def test_what_no_poison_is(make, words):
    with pytest.raises(ValueError, match=words):
        make(ffm.Population.from_clients([{"label": np.array([5])}] * 2))
