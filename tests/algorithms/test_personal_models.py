"""Ditto, pFedMe, APFL, FedALA and Per-FedAvg: what they reduce to, and plain numpy versions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from quadratics import TASK as POINT
from quadratics import of_points
from small_network import loss, mean, moved, run, slope

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels, peft, tasks

RATE, ROUNDS = 0.05, 2
CLIENTS = make_clients(sizes=(6, 1, 4, 2))
SIZES = [6, 1, 4, 2]
DELTA, BACKBONE = make_trees()
TASK = ffm.Task(mlp_loss)
# every batch is all of a client's examples
LOCAL = {"local_steps": 3, "batch_size": 8}
SGD = optax.sgd(RATE)


def network(algorithm, rounds=ROUNDS, **how):
    return run(algorithm, CLIENTS, DELTA, rounds, backbone=BACKBONE, **how)


def point(algorithm, rounds=1, points=(1.0, -2.0, 4.0), **how):
    start = {"w": jnp.float32(0.5)}
    return run(algorithm, of_points(points), start, rounds, **how)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, **how):
    how = {"rtol": 2e-5, "atol": 2e-6} | how
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **how), a, b)


def own(state, k):
    return jax.tree.map(lambda x: x[k], state.carry.clients)


# batches of two and half of the clients a round: what is paired is paired there, too
SHORT = {"epochs": 2, "batch_size": 2}
HALF = {"cohort_size": 2}


@pytest.fixture(scope="module")
def fedavg():
    return network(ffm.fedavg(TASK, SGD, **SHORT), **HALF)


@pytest.fixture(scope="module")
def local_only():
    return network(algorithms.local_only(TASK, SGD, **SHORT), **HALF)


# Ditto


def test_ditto_with_penalty_0_is_fedavg_beside_local_training(fedavg, local_only):
    method = algorithms.ditto(TASK, SGD, penalty=0.0, **SHORT)
    simulator, state, metrics = network(method, **HALF)
    equal(state.delta, fedavg[1].delta)
    equal(state.carry.clients, local_only[1].carry.clients)
    for name in ("loss", "uplink_bytes", "downlink_bytes", "examples"):
        np.testing.assert_array_equal(metrics[name], fedavg[2][name])
    np.testing.assert_array_equal(metrics["personal_loss"], local_only[2]["loss"])
    # two trainings
    np.testing.assert_array_equal(
        metrics["examples_processed"], 2 * fedavg[2]["examples_processed"]
    )
    equal(simulator.model(state)[0], state.delta)
    equal(simulator.model(state, 2)[0], own(state, 2))


def plain_ditto(penalty, steps, own_steps):
    w = {name: leaf.astype(np.float64) for name, leaf in DELTA.items()}
    v = [dict(w) for _ in CLIENTS]
    for _ in range(ROUNDS):
        trained = []
        for k, client in enumerate(CLIENTS):
            one = w
            for _ in range(steps):
                one = moved(one, slope(one, BACKBONE, client), RATE)
            trained.append(one)
            for _ in range(own_steps):
                found = slope(v[k], BACKBONE, client)
                found = {n: g + penalty * (v[k][n] - w[n]) for n, g in found.items()}
                v[k] = moved(v[k], found, 0.1)
        w = mean(trained, SIZES)
    return w, v


def test_ditto_is_the_papers():
    how = {"penalty": 0.7, "personal_optimizer": optax.sgd(0.1), "personal_steps": 2}
    _, state, _ = network(algorithms.ditto(TASK, SGD, **how, **LOCAL))
    w, v = plain_ditto(0.7, steps=3, own_steps=2)
    close(state.delta, w)
    for k in range(len(CLIENTS)):
        close(own(state, k), v[k])


def test_dittos_fixed_point():
    """v = (a + penalty w) / (1 + penalty), for losses 1/2 (v - a)^2."""
    how = {"local_steps": 50, "batch_size": 1}
    method = algorithms.ditto(POINT, optax.sgd(0.2), penalty=2.0, **how)
    _, state, _ = point(method, rounds=2)
    w = float(state.delta["w"])  # the received one of round 2: already the mean
    expected = [(a + 2 * w) / 3 for a in (1.0, -2.0, 4.0)]
    np.testing.assert_allclose(state.carry.clients["w"], expected, rtol=1e-5, atol=2e-5)


def test_dittos_straggler_trains_the_shared_model_first():
    def most_steps(client, round, key):
        return jnp.int32(3)

    slow = ffm.Behaviour(most_steps=most_steps)
    method = algorithms.ditto(TASK, SGD, penalty=1.0, **LOCAL)
    _, state, _ = network(method, rounds=1, behaviour=slow)
    w, _ = plain_round()
    close(state.delta, w)
    equal(own(state, 0), jax.tree.map(jnp.asarray, DELTA))  # no step was left


def plain_round(steps=3):
    trained = []
    for client in CLIENTS:
        one = {name: leaf.astype(np.float64) for name, leaf in DELTA.items()}
        for _ in range(steps):
            one = moved(one, slope(one, BACKBONE, client), RATE)
        trained.append(one)
    return mean(trained, SIZES), trained


# pFedMe


def test_pfedmes_minimum_on_quadratics():
    """theta = (a + penalty w) / (1 + penalty), and w goes by penalty (w - theta)."""
    how = {"inner_steps": 200, "local_steps": 3, "batch_size": 1}
    optimizers = {"personal_optimizer": optax.sgd(0.1)}
    method = algorithms.pfedme(POINT, optax.sgd(0.05), penalty=2.0, **how, **optimizers)
    _, state, _ = point(method)
    ends, thetas = [], []
    for a in (1.0, -2.0, 4.0):
        w = 0.5
        for _ in range(3):
            theta = (a + 2 * w) / 3
            w -= 0.05 * 2 * (w - theta)
        ends.append(w)
        thetas.append(theta)
    np.testing.assert_allclose(state.carry.clients["w"], thetas, rtol=1e-5)
    np.testing.assert_allclose(state.delta["w"], np.mean(ends), rtol=1e-5)

    # the envelope's gradient, by finite differences of min_t 1/2 (t - a)^2 + (w - t)^2
    def envelope(w, a=1.0):
        t = (a + 2 * w) / 3
        return 0.5 * (t - a) ** 2 + (t - w) ** 2

    slope_of = (envelope(0.5 + 1e-4) - envelope(0.5 - 1e-4)) / 2e-4
    np.testing.assert_allclose(slope_of, 2 * (0.5 - (1 + 2 * 0.5) / 3), rtol=1e-6)


def test_pfedme_is_the_papers():
    how = {"inner_steps": 2, "personal_optimizer": optax.sgd(0.1)}
    server = optax.sgd(0.5)
    method = algorithms.pfedme(TASK, SGD, server, penalty=3.0, **how, **LOCAL)
    simulator, state, metrics = network(method)
    w = {name: leaf.astype(np.float64) for name, leaf in DELTA.items()}
    for _ in range(ROUNDS):
        ends, thetas = [], []
        for client in CLIENTS:
            center = theta = w
            for _ in range(3):
                for _ in range(2):
                    found = slope(theta, BACKBONE, client)
                    found = {
                        n: g + 3 * (theta[n] - center[n]) for n, g in found.items()
                    }
                    theta = moved(theta, found, 0.1)
                pull = {n: 3 * (center[n] - theta[n]) for n in center}
                center = moved(center, pull, RATE)
            ends.append(center)
            thetas.append(theta)
        middle = mean(ends, SIZES)
        w = {n: 0.5 * w[n] + 0.5 * middle[n] for n in w}
    close(state.delta, w)
    for k, theta in enumerate(thetas):
        close(simulator.model(state, k)[0], theta)
    assert metrics["uplink_bytes"][0] == 4 * ffm.trees.nbytes(DELTA)


@pytest.mark.parametrize("penalty", [0.0, 20.0])
def test_the_ends_of_pfedmes_penalty(penalty):
    """0: w stays. One inner step of rate 1 / penalty, one batch: FedAvg's step."""
    inner = optax.sgd(1 / penalty if penalty else 0.1)
    how = {"inner_steps": 1, "personal_optimizer": inner, "batch_size": 8}
    method = algorithms.pfedme(TASK, SGD, penalty=penalty, local_steps=1, **how)
    _, state, _ = network(method, rounds=1)
    close(state.delta, plain_round(steps=1)[0] if penalty else DELTA)


# APFL


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_apfl_at_its_ends_is_fedavg_and_local_training(mix, fedavg, local_only):
    method = algorithms.apfl(TASK, SGD, mix_rate=0.0, mix=mix, **SHORT)
    simulator, state, metrics = network(method, **HALF)
    close(state.delta, fedavg[1].delta)
    np.testing.assert_array_equal(metrics["uplink_bytes"], fedavg[2]["uplink_bytes"])
    for k in range(len(CLIENTS)):
        expected = fedavg[1].delta if mix == 0 else own(local_only[1], k)
        close(simulator.model(state, k)[0], expected)
    assert metrics["mix"].tolist() == [mix] * ROUNDS
    close(simulator.model(state)[0], state.delta)


def plain_apfl(mix, mix_rate):
    """Algorithm 1, the mixture's weight learned at the first batch of a round."""
    w = {name: leaf.astype(np.float64) for name, leaf in DELTA.items()}
    v, alpha = [dict(w) for _ in CLIENTS], [mix] * len(CLIENTS)
    for _ in range(ROUNDS):
        ends = []
        for k, client in enumerate(CLIENTS):
            one = w
            for step in range(3):
                a = alpha[k]
                both = {n: a * v[k][n] + (1 - a) * one[n] for n in w}
                found = slope(both, BACKBONE, client)
                if step == 0:
                    inner = sum(np.sum(found[n] * (v[k][n] - one[n])) for n in w)
                    alpha[k] = np.clip(a - mix_rate * inner, 0, 1)
                one = moved(one, slope(one, BACKBONE, client), RATE)
                v[k] = moved(v[k], found, RATE * a)
            ends.append(one)
        w = mean(ends, SIZES)
    return w, v, alpha


def test_apfl_is_the_papers():
    method = algorithms.apfl(TASK, SGD, mix_rate=0.5, mix=0.3, **LOCAL)
    simulator, state, _ = network(method)
    w, v, alpha = plain_apfl(0.3, 0.5)
    close(state.delta, w)
    close(state.carry.clients.mix, np.array(alpha))
    assert len(set(alpha)) > 1  # something was learned
    for k, a in enumerate(alpha):
        close(own(state, k).model, v[k])
        mixed = {n: a * v[k][n] + (1 - a) * w[n] for n in w}
        close(simulator.model(state, k)[0], mixed)


def test_apfls_mix_stays_between_0_and_1():
    method = algorithms.apfl(TASK, SGD, mix_rate=1e4, **LOCAL)
    _, state, _ = network(method)
    assert set(np.asarray(state.carry.clients.mix).tolist()) <= {0.0, 1.0, 0.5}
    assert set(np.asarray(state.carry.clients.mix).tolist()) & {0.0, 1.0}


def test_apfl_mixes_by_the_task_that_it_is_given():
    """Mixing leaf by leaf as a task of both gives what the default gives."""

    def both(adapters, backbone, batch, key):
        a = adapters.mix
        mixed = jax.tree.map(
            lambda w, v: a * v + (1 - a) * w, adapters.shared, adapters.private
        )
        return mlp_loss(mixed, backbone, batch, key)

    how = {"mix_rate": 0.5, "mix": 0.3, **LOCAL}
    method = algorithms.apfl(TASK, SGD, personal_task=ffm.Task(both), **how)
    simulator, state, _ = network(method)
    _, v, alpha = plain_apfl(0.3, 0.5)
    close(state.carry.clients.mix, np.array(alpha))
    delta, _ = simulator.model(state, 0)
    close(delta.private, v[0])
    assert float(simulator.model(state)[0].mix) == 0


# FedALA

PART = {"personal": "^v$"}


def test_fedala_with_weights_of_1_is_fedavg(fedavg):
    """In the first round always, and for ever with weights that are not learned."""
    method = algorithms.fedala(TASK, SGD, **PART, weight_rate=0.0, **SHORT)
    simulator, state, metrics = network(method, **HALF)
    equal(state.delta, fedavg[1].delta)
    for name in ("loss", "uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(metrics[name], fedavg[2][name])
    equal(simulator.model(state, 1)[0], state.delta)
    assert list(state.carry.clients.last) == ["v"]


def plain_ala(rounds, first_passes, weight_rate):
    w = {name: leaf.astype(np.float64) for name, leaf in DELTA.items()}
    last, weights = [w["v"]] * 4, [np.ones(4)] * 4
    for round in range(rounds):
        ends = []
        for k, client in enumerate(CLIENTS):
            near = w["v"] if round == 0 else last[k]
            gap = w["v"] - near
            for _ in range((0, first_passes, 1)[min(round, 2)]):
                start = {**w, "v": near + gap * weights[k]}
                found = slope(start, BACKBONE, client)["v"]
                weights[k] = np.clip(weights[k] - weight_rate * found * gap, 0, 1)
            one = {**w, "v": near + gap * weights[k]}
            for _ in range(3):
                one = moved(one, slope(one, BACKBONE, client), RATE)
            ends.append(one)
            last[k] = one["v"]
        w = mean(ends, SIZES)
    return w, last, weights


def test_fedala_is_the_papers():
    how = {"weight_rate": 0.8, "share": 1.0, "first_passes": 4, **LOCAL}
    method = algorithms.fedala(TASK, SGD, **PART, **how)
    simulator, state, metrics = network(method, rounds=3)
    w, last, weights = plain_ala(3, 4, 0.8)
    close(state.delta, w)
    close(state.carry.clients.weights["v"], np.array(weights))
    close(state.carry.clients.last["v"], np.array(last))
    assert metrics["weight_passes"].tolist() == [0, 4, 1]
    assert not (np.array(weights) == 1).all()
    start = last[0] + (w["v"] - last[0]) * weights[0]
    close(simulator.model(state, 0)[0], {**w, "v": start})


def test_fedalas_first_learning_ends_when_losses_agree():
    how = {"first_passes": 50, "tolerance": 1e6, **LOCAL}
    _, state, metrics = network(algorithms.fedala(TASK, SGD, **PART, **how))
    assert metrics["weight_passes"].tolist() == [0, 11]
    weights = np.asarray(state.carry.clients.weights["v"])
    assert ((weights >= 0) & (weights <= 1)).all()


# Per-FedAvg


def test_per_fedavg_with_inner_rate_0_is_fedavg(fedavg):
    method = algorithms.per_fedavg(TASK, SGD, inner_rate=0.0, **SHORT)
    _, state, metrics = network(method, **HALF)
    close(state.delta, fedavg[1].delta)
    np.testing.assert_allclose(metrics["loss"], fedavg[2]["loss"], rtol=1e-5)
    np.testing.assert_array_equal(metrics["uplink_bytes"], fedavg[2]["uplink_bytes"])
    np.testing.assert_array_equal(
        metrics["examples_processed"], 2 * fedavg[2]["examples_processed"]
    )


def test_per_fedavg_is_the_papers():
    method = algorithms.per_fedavg(TASK, SGD, inner_rate=0.2, **LOCAL)
    simulator, state, metrics = network(method)
    w = {name: leaf.astype(np.float64) for name, leaf in DELTA.items()}
    for round in range(ROUNDS):
        ends, losses = [], []
        for client in CLIENTS:
            one = w
            for _ in range(3):
                ahead = moved(one, slope(one, BACKBONE, client), 0.2)
                losses.append(len(client["y"]) * loss(ahead, BACKBONE, client))
                one = moved(one, slope(ahead, BACKBONE, client), RATE)
            ends.append(one)
        w = mean(ends, SIZES)
        seen = sum(losses) / (3 * sum(SIZES))
        np.testing.assert_allclose(metrics["loss"][round], seen, rtol=1e-5)
    close(state.delta, w)
    # a client's own model is one step from there
    population = ffm.Population.from_clients(CLIENTS)
    how = {"local_steps": 1, "batch_size": 8}
    model = simulator.model(state)
    tuned = algorithms.fine_tune(TASK, optax.sgd(0.2), model, population, **how)
    close(tuned(2)[0], moved(w, slope(w, BACKBONE, CLIENTS[2]), 0.2))


def test_per_fedavgs_clients_may_keep_their_own_model():
    """One step from what they received; what is averaged does not change."""
    how = {"inner_rate": 0.2, **LOCAL}
    method = algorithms.per_fedavg(TASK, SGD, keeps_own=True, **how)
    simulator, state, _ = network(method, rounds=1)
    _, expected, _ = network(algorithms.per_fedavg(TASK, SGD, **how), rounds=1)
    equal(state.delta, expected.delta)
    for k, client in enumerate(CLIENTS):
        close(
            simulator.model(state, k)[0],
            moved(DELTA, slope(DELTA, BACKBONE, client), 0.2),
        )


def test_per_fedavgs_direction_on_quadratics():
    """(1 - inner_rate) (w - a) for losses 1/2 (w - a)^2."""
    how = {"inner_rate": 0.25, "local_steps": 1, "batch_size": 1}
    _, state, _ = point(algorithms.per_fedavg(POINT, optax.sgd(0.1), **how))
    directions = [0.75 * (0.5 - a) for a in (1.0, -2.0, 4.0)]
    expected = 0.5 - 0.1 * np.mean(directions)
    np.testing.assert_allclose(state.delta["w"], expected, rtol=1e-6)


# What is refused


BAD = [
    ("ditto", {"penalty": -1.0}, "penalty=-1.0"),
    ("pfedme", {"penalty": -1.0}, "penalty=-1.0"),
    ("pfedme", {"penalty": 1.0, "inner_steps": 0}, "inner_steps=0"),
    ("apfl", {"mix_rate": 0.1, "mix": 1.5}, "mix=1.5"),
    ("apfl", {"mix_rate": -0.1}, "mix_rate=-0.1"),
    ("apfl", {"mix_rate": 0.1, "personal_task": mlp_loss}, "Task"),
    ("fedala", {**PART, "share": 0.0}, "share=0.0"),
    ("fedala", {**PART, "tolerance": -1.0}, "tolerance=-1.0"),
    ("per_fedavg", {"inner_rate": -0.1}, "inner_rate=-0.1"),
    ("ditto", {"penalty": 1.0, "personal_epochs": 2}, "personal_epochs=2"),
    ("ditto", {"penalty": 1.0, "personal_steps": 0}, "personal_steps=0"),
    ("ditto", {"penalty": 1.0, "personal_optimizer": 0.1}, "personal_optimizer"),
]


@pytest.mark.parametrize(("name", "how", "words"), BAD)
def test_bad_values_are_refused_by_name(name, how, words):
    with pytest.raises((TypeError, ValueError), match=words):
        getattr(algorithms, name)(TASK, SGD, **how, **LOCAL)


# Together with the rest


def test_apfl_mixes_the_products_of_lora(tiny_bert):
    """a B_v A_v + (1 - a) B_w A_w: at a = 0 and a = 1 each adapter alone."""
    from fedjax_fm import models

    whole = models.from_pretrained(str(tiny_bert), num_labels=2, pooling="mean")
    adapted = peft.apply(whole, peft.lora(2, 4.0, targets=r"query"), jax.random.key(0))
    task = tasks.classification(adapted)
    both = tasks.classification(peft.beside(adapted))
    method = algorithms.apfl(
        task, optax.sgd(0.5), mix_rate=0.1, personal_task=both, **LOCAL
    )
    random = np.random.default_rng(0)
    clients = [
        {
            "input_ids": random.integers(0, 20, (4, 5)).astype(np.int32),
            "attention_mask": np.ones((4, 5), np.int32),
            "label": random.integers(0, 2, 4).astype(np.int32),
        }
        for _ in range(2)
    ]
    simulator, state, metrics = run(
        method,
        clients,
        adapted.delta,
        2,
        backbone=adapted.backbone,
        uplink=channels.quantize(8),
    )
    assert np.isfinite(metrics["personal_loss"]).all()
    adapters, backbone = simulator.model(state, 0)
    alone = ffm.evaluate(task, adapters.private, backbone, clients[0])["loss"]
    mixed = ffm.evaluate(
        both, adapters._replace(mix=jnp.float32(1)), backbone, clients[0]
    )["loss"]
    np.testing.assert_allclose(mixed, alone, rtol=1e-4)
