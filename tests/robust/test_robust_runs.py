"""Whole runs: rules in the place of means, liars in front of them, uploads that are no numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quadratics

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels, privacy, robust
from fedjax_fm.robust import attacks

WALK = {"local_steps": 1, "batch_size": 4}
FEDAVG = ffm.fedavg(quadratics.TASK, optax.sgd(0.1), **quadratics.FULL)
UPDATES = 0.1 * quadratics.gradients(quadratics.START)

# Logistic regression of two classes that ten clients see a share of each.
N, LIARS = 10, (2, 7)


def classify(delta, backbone, batch, key):
    margin = (batch["x"] @ delta) * (2 * batch["label"] - 1)
    return jnp.logaddexp(0.0, -margin), {}


def rows_of(seed, n):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    middle = np.array([1.0, -0.5, 0.25, 0.0])
    x = rng.normal(size=(n, 4)) + np.where(label[:, None] == 1, middle, -middle)
    return {"x": x.astype(np.float32), "label": label.astype(np.int32)}


CLIENTS = [rows_of(k, 30 + k) for k in range(N)]
TEST = rows_of(99, 2000)
PLAIN = ffm.fedavg(ffm.Task(classify), optax.sgd(0.3), local_steps=3, batch_size=64)
RULES = {
    "coordinate_median": robust.coordinate_median(),
    "trimmed_mean": robust.trimmed_mean(0.2),
    "krum": robust.krum(2),
    "multi_krum": robust.multi_krum(2),
    "bulyan": robust.bulyan(1),
    "geometric_median": robust.geometric_median(iterations=8),
    "centred_clipping": robust.centred_clipping(0.5),
    "norm_bound": robust.norm_bound(0.5),
    "fltrust": robust.fltrust(rows_of(77, 50)),
    "sign_majority": robust.sign_majority(0.1),
}


def accuracy(method, rounds=10, **how):
    population = ffm.Population.from_clients(CLIENTS)
    simulator = ffm.Simulator(method, population, cohort_size=N, devices=1, **how)
    state, _ = simulator.run(simulator.init(jnp.zeros(4)), rounds)
    found = TEST["x"] @ np.asarray(state.delta) > 0
    return (found == TEST["label"]).mean()


def flipped(rule):
    """A fifth of the clients send six times the opposite."""
    method = robust.robust(PLAIN, rule)
    return attacks.attacked(method, attacks.sign_flip(6.0), LIARS)


def test_plain_averaging_fails_under_sign_flips():
    assert accuracy(PLAIN) > 0.8
    assert accuracy(attacks.attacked(PLAIN, attacks.sign_flip(6.0), LIARS)) < 0.5
    assert accuracy(flipped(robust.mean())) < 0.5


@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_do_not(name):
    assert accuracy(flipped(RULES[name])) > 0.8


# In the place of a mean


def value(method, rounds=1, **how):
    state, metrics = quadratics.run(method, rounds, **how)
    return np.asarray(state.delta), metrics


def test_the_mean_by_weights_is_the_method():
    sizes = [1, 2, 3, 4, 1, 2]
    clients = quadratics.clients(sizes=sizes)
    own = robust.robust(FEDAVG, robust.mean(), most_weight=1e6)
    plain, metrics = value(FEDAVG, 3, clients=clients)
    found, seen = value(own, 3, clients=clients)
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
    for name in metrics:
        np.testing.assert_allclose(seen[name], metrics[name], rtol=1e-5)
    capped, _ = value(
        robust.robust(FEDAVG, robust.mean(), most_weight=2.0), clients=clients
    )
    w = np.minimum(sizes, 2)
    expected = quadratics.START - w @ UPDATES / w.sum()
    np.testing.assert_allclose(capped, expected, rtol=1e-5, atol=1e-6)


def test_the_median_of_the_updates():
    found, metrics = value(robust.robust(FEDAVG, robust.coordinate_median()))
    expected = quadratics.START - np.median(UPDATES, axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert metrics["rejected"].tolist() == [0]
    assert metrics["rejected_client"].tolist() == [-1]


@pytest.mark.parametrize("channel", [None, channels.quantize(bits=8)])
def test_uploads_that_are_no_numbers_are_rejected(channel):
    """Two of six, one of them with weights of infinity; the losses are theirs alone, too."""
    a = quadratics.A.copy()
    a[1], a[4] = np.nan, np.inf
    method = robust.robust(FEDAVG, robust.coordinate_median())
    how = {} if channel is None else {"uplink": channel}
    found, metrics = value(method, clients=quadratics.clients(a=a), **how)
    honest = np.delete(UPDATES, [1, 4], axis=0)
    expected = quadratics.START - np.median(honest, axis=0)
    atol = 1e-6 if channel is None else 0.02
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)
    assert metrics["rejected"].tolist() == [2]
    assert metrics["rejected_client"].tolist() == [1]
    assert np.isfinite(metrics["loss"]).all()
    with pytest.raises(ffm.NonFiniteClient):
        value(FEDAVG, clients=quadratics.clients(a=a), **how)


def test_a_lie_that_is_no_number_is_rejected():
    def infinite(upload, message, key):
        return jax.tree.map(lambda x: x / 0, upload)

    method = robust.robust(FEDAVG, robust.mean())
    lie = attacks.Attack(alone=infinite)
    found, metrics = value(attacks.attacked(method, lie, [3]))
    expected = quadratics.START - np.delete(UPDATES, 3, axis=0).mean(0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert metrics["rejected_client"].tolist() == [3]


def test_a_round_in_which_all_are_rejected_changes_nothing():
    a = np.full_like(quadratics.A, np.nan)
    method = robust.robust(FEDAVG, robust.krum(1))
    found, metrics = value(method, 2, clients=quadratics.clients(a=a))
    np.testing.assert_array_equal(found, quadratics.START)
    assert metrics["rejected"].tolist() == [6, 6]


def test_who_drops_out_is_not_there():
    """And a cohort larger than those who came is the smaller cohort."""
    behaviour = ffm.Behaviour(drops=lambda id, round, key: id >= 4)
    method = robust.robust(FEDAVG, robust.krum(1))
    found, _ = value(method, behaviour=behaviour)
    a, h = quadratics.A[:4], quadratics.H[:4]
    fewer = quadratics.clients(h, a)
    expected, _ = value(method, clients=fewer, cohort_size=4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_fltrust_trains_as_a_client_does():
    """Root data of one client: its update, at its length, from all that agree."""
    root = quadratics.clients()[2]
    found, metrics = value(robust.robust(FEDAVG, robust.fltrust(root)))
    g, total, trust = UPDATES[2], 0.0, 0.0
    for x in UPDATES:
        t = max(0.0, x @ g / np.linalg.norm(x) / np.linalg.norm(g))
        total = total + t * np.linalg.norm(g) / np.linalg.norm(x) * x
        trust += t
    expected = quadratics.START - total / trust
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert metrics["trust"][0] == pytest.approx(trust / 6, rel=1e-4)


def test_the_centre_goes_on_from_round_to_round():
    rule = robust.centred_clipping(0.2)
    state, _ = quadratics.run(robust.robust(FEDAVG, rule), 3)
    w, v = quadratics.START.astype(np.float64), np.zeros(quadratics.D)
    for _ in range(3):
        gaps = 0.1 * quadratics.gradients(w) - v
        norms = np.linalg.norm(gaps, axis=1, keepdims=True)
        v = v + (gaps * np.minimum(1, 0.2 / norms)).mean(0)
        w = w - v
    np.testing.assert_allclose(np.asarray(state.delta), w, rtol=1e-5, atol=1e-6)


def test_methods_of_several_exchanges():
    """Mime averages gradients and updates; each has its own count."""
    mime = algorithms.mime(quadratics.TASK, optax.sgd(0.1), **WALK)
    _, metrics = value(robust.robust(mime, robust.coordinate_median()), 2)
    assert metrics["rejected_0"].tolist() == [0, 0]
    assert metrics["rejected_1"].tolist() == [0, 0]


def test_in_front_of_it_power_of_choice():
    inner = robust.robust(FEDAVG, robust.coordinate_median())
    method = algorithms.power_of_choice(
        inner, quadratics.TASK, cohort_size=3, batch_size=4
    )
    found, _ = value(method)
    losses = (quadratics.H * quadratics.A**2).sum(1)
    chosen = np.argsort(-losses)[:3]
    expected = quadratics.START - np.median(UPDATES[chosen], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Refusals


def private():
    how = {"noise": privacy.independent(), "noise_multiplier": 1.0, "clip_norm": 1.0}
    return algorithms.dp_fedavg(quadratics.TASK, optax.sgd(0.1), **how, **WALK)


REFUSED = {
    "noise": (private, "its guarantee would not hold"),
    "sums": (
        lambda: algorithms.scaffold(quadratics.TASK, optax.sgd(0.1), **WALK),
        "there is no mean to replace",
    ),
    "seeds": (
        lambda: algorithms.fedkseed(quadratics.TASK, learning_rate=0.1, **WALK),
        "there is no mean to replace",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_methods_in_which_it_makes_no_sense(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        robust.robust(make(), robust.coordinate_median())


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="every client counts the same"):
        robust.robust(FEDAVG, robust.krum(1), most_weight=2.0)
    with pytest.raises(TypeError, match="expected rule to be a Rule"):
        robust.robust(FEDAVG, "krum")
    with pytest.raises(ValueError, match="got one that has root data"):
        robust.by_leaf(robust.fltrust({"x": np.zeros(1)}))
    for arrays in ({}, {"x": np.zeros(0)}, {"x": np.zeros(2), "y": np.zeros(3)}):
        with pytest.raises(ValueError, match="the same number of rows"):
            robust.fltrust(arrays)
