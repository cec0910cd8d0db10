"""FADA against a plain loop over clients."""

from typing import Any

import domain_problem as problem
import jax
import numpy as np
import optax
import pytest
from domain_problem import CLASSES, STRENGTHS, TARGET

import fedjax_fm as ffm
from fedjax_fm import trees

SIZES = (6, 5, 4, 6)  # the target first
NOTHING = dict.fromkeys(STRENGTHS, 0.0)


def run(clients, n_rounds, **how):
    _, delta = problem.networks()
    population = ffm.Population.from_clients(clients)
    one = ffm.Simulator(
        problem.method(**how),
        population,
        backbone=problem.backbone(),
        cohort_size=len(clients),
        devices=1,
    )
    return one, *one.run(one.init(delta), n_rounds)


def close(a, b, rtol=2e-4, atol=2e-5):
    def one(x, y):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)

    jax.tree.map(one, a, b)


@pytest.mark.parametrize(
    ("strengths", "begin"),
    [(STRENGTHS, "own"), (NOTHING, "own"), (STRENGTHS, "target")],
    ids=["all", "classes", "sources that begin with the target's parts"],
)
def test_rounds_are_those_of_a_plain_loop(strengths, begin):
    clients = problem.clients(SIZES)
    one, state, metrics = run(clients, 2, **strengths, begin=begin)
    delta, parts, alpha = problem.rounds(clients, 2, strengths, begin=begin)
    close(state.delta, delta)
    for k in range(1, len(SIZES)):
        close(one.client_state(state, k).parts, parts[k])
    found = [metrics[f"attention_{k}"][-1] for k in range(len(SIZES))]
    close(found, [0.0, *alpha])


def test_each_term_moves_what_it_should():
    """Without a term the result is another one: no strength is ignored."""
    clients = problem.clients(SIZES)
    _, state, _ = run(clients, 1)
    whole = np.concatenate([x.ravel() for x in jax.tree.leaves(state.delta)])
    for name in STRENGTHS:
        _, state, _ = run(clients, 1, **{name: 0.0})
        other = np.concatenate([x.ravel() for x in jax.tree.leaves(state.delta)])
        assert np.abs(whole - other).max() > 1e-5, name


def test_one_source_alone_has_all_the_attention():
    clients = problem.clients(SIZES[:2])
    one, state, metrics = run(clients, 1, **NOTHING)
    assert metrics["attention_1"].tolist() == [1.0]
    own = one.client_state(state, 1).parts
    for name in ("extractor", "disentangler", "classifier"):
        close(state.delta[name], own[name])  # both began at the same place


def test_equal_sources_share_equally():
    target, source, _, _ = problem.clients(SIZES)
    _, _, metrics = run([target, source, source], 2)
    close(metrics["attention_1"], [0.5, 0.5])
    close(metrics["attention_2"], [0.5, 0.5])


def test_the_labels_of_the_target_are_not_read():
    clients = problem.clients(SIZES)
    _, state, _ = run(clients, 2)
    clients[TARGET]["label"] = (clients[TARGET]["label"] + 1) % CLASSES
    _, other, _ = run(clients, 2)
    jax.tree.map(np.testing.assert_array_equal, state.delta, other.delta)
    clients[1]["label"] = (clients[1]["label"] + 1) % CLASSES
    _, other, _ = run(clients, 2)
    assert not np.array_equal(
        state.delta["classifier"]["kernel"], other.delta["classifier"]["kernel"]
    )


@pytest.mark.parametrize("begin", ["own", "target"])
def test_bytes_of_a_round(begin):
    clients = problem.clients(SIZES)
    _, _, metrics = run(clients, 1, begin=begin)
    _, delta = problem.networks()
    sent = {name: delta[name] for name in ("extractor", "disentangler", "classifier")}
    model, n, sources = 4 * trees.size(sent), len(SIZES), len(SIZES) - 1
    rows = problem.BATCH * problem.FEATURES * 4
    bits = 1  # the mask of six rows is a byte
    up = problem.STEPS * n * (rows + bits) + sources * model
    up += 4 * sources + 4 * trees.size(delta["extractor"])
    down = model + problem.STEPS * n * rows + sources * model
    if begin == "target":
        down += sources * model
    assert metrics["uplink_bytes"].tolist() == [up]
    assert metrics["downlink_bytes"].tolist() == [down]


def test_a_source_that_does_not_arrive_weighs_nothing():
    clients = problem.clients(SIZES)
    _, delta = problem.networks()

    def drops(client, round, key):
        return client == 2

    one = ffm.Simulator(
        problem.method(),
        ffm.Population.from_clients(clients),
        backbone=problem.backbone(),
        cohort_size=len(clients),
        devices=1,
        behaviour=ffm.Behaviour(drops=drops),
    )
    _, metrics = one.run(one.init(delta), 1)
    assert metrics["attention_2"].tolist() == [0.0]
    total = sum(metrics[f"attention_{k}"] for k in range(len(SIZES)))
    close(total, [1.0])


def test_refusals():
    _, delta = problem.networks()
    one = run_of(problem.method())
    fewer = {name: x for name, x in delta.items() if name != "estimator"}
    with pytest.raises(ValueError, match="missing: estimator"):
        one.init(fewer)
    with pytest.raises(ValueError, match="target=9"):
        run_of(problem.method(target=9)).init(delta)
    sgd = optax.sgd(0.1)
    wrong: Any = 3
    how: Any = {"target": 0, "clusters": 2, "local_steps": 1, "batch_size": 2}
    with pytest.raises(ValueError, match="got begin='server'"):
        problem.method(begin="server")
    with pytest.raises(TypeError, match="networks to be a FADANetworks, got 3"):
        ffm.algorithms.fada(wrong, sgd, sgd, **how)


def run_of(method):
    population = ffm.Population.from_clients(problem.clients(SIZES))
    return ffm.Simulator(
        method, population, backbone=problem.backbone(), cohort_size=4, devices=1
    )
