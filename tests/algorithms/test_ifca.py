"""IFCA: one cluster is FedAvg, planted clusters are found, what nobody chose stays."""

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
from fedjax_fm import algorithms, channels
from fedjax_fm.algorithms.personal.clusters import bits_of, number_of

RATE, ROUNDS = 0.05, 2
SIZES = [6, 1, 4, 2]
CLIENTS = make_clients(sizes=SIZES)
DELTA, BACKBONE = make_trees()
TASK, SGD = ffm.Task(mlp_loss), optax.sgd(RATE)
LOCAL = {"local_steps": 3, "batch_size": 8}
BYTES = ffm.trees.nbytes(DELTA)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    def one(x, y):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)

    jax.tree.map(one, a, b)


def models(state):
    return state.carry.server.models


def test_one_cluster_is_fedavg():
    how = {"backbone": BACKBONE, "cohort_size": 2}
    walk, server = {"epochs": 2, "batch_size": 2}, optax.sgd(0.7, momentum=0.9)
    plain = ffm.fedavg(TASK, SGD, server, **walk)
    _, expected, costs = run(plain, CLIENTS, DELTA, 3, **how)
    method = algorithms.ifca(TASK, SGD, server, clusters=1, **walk)
    simulator, state, metrics = run(method, CLIENTS, DELTA, 3, **how)
    close(state.delta, expected.delta)
    close(simulator.model(state, 1)[0], expected.delta)
    np.testing.assert_allclose(metrics["loss"], costs["loss"], rtol=1e-5)
    for name in ("uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(metrics[name], costs[name])
    assert metrics["unchosen_clusters"].tolist() == [0, 0, 0]


def apart(delta, key, j):
    """Starts that differ, the same for every key."""
    return jax.tree.map(lambda x: x * (-1) ** j + 0.1 * j, delta)


def plain_ifca(rounds, clusters):
    """Algorithm 1 with model averaging: (models, what each client chose last)."""
    found = [
        jax.tree.map(lambda x: x.astype(np.float64), apart(DELTA, None, j))
        for j in range(clusters)
    ]
    for _ in range(rounds):
        ends, chosen = [], []
        for client in CLIENTS:
            losses = [loss(one, BACKBONE, client) for one in found]
            j = int(np.argmin(losses))
            one = found[j]
            for _ in range(3):
                one = moved(one, slope(one, BACKBONE, client), RATE)
            ends.append(one)
            chosen.append(j)
        for j in range(clusters):
            mine = [k for k, choice in enumerate(chosen) if choice == j]
            if mine:
                weights = [SIZES[k] for k in mine]
                found[j] = mean([ends[k] for k in mine], weights)
    return found, chosen


def test_is_the_papers():
    method = algorithms.ifca(TASK, SGD, clusters=3, cluster_init=apart, **LOCAL)
    how = {"backbone": BACKBONE}
    simulator, state, metrics = run(method, CLIENTS, DELTA, ROUNDS, **how)
    expected, chosen = plain_ifca(ROUNDS, 3)
    close(models(state), jax.tree.map(lambda *x: np.stack(x), *expected))
    assert state.carry.clients.tolist() == chosen
    assert len(set(chosen)) > 1
    for k, j in enumerate(chosen):
        close(simulator.model(state, k)[0], expected[j])
    # K models down; a change and two bits up, in a byte
    assert metrics["downlink_bytes"].tolist() == [4 * 3 * BYTES] * ROUNDS
    assert metrics["uplink_bytes"].tolist() == [4 * (BYTES + 1)] * ROUNDS
    weights = [sum(SIZES[k] for k in range(4) if chosen[k] == j) for j in range(3)]
    shares = [metrics[f"cluster_{j}"][-1] for j in range(3)]
    np.testing.assert_allclose(shares, np.array(weights) / sum(SIZES), rtol=1e-6)
    assert metrics["unchosen_clusters"][-1] == weights.count(0)
    close(state.delta, expected[int(np.argmax(weights))])


POINTS = (-5.1, 5.2, -4.9, 5.0, 4.8, -5.0)


def basins(delta, key, j):
    return {"w": delta["w"] + (-2.0, 2.0, 40.0)[j]}


def test_planted_clusters_are_those_of_separate_fedavgs():
    """Well apart, from starts in their basins: the same choice from the first round on."""
    how = {"local_steps": 2, "batch_size": 1}
    rate, start = optax.sgd(0.3), {"w": jnp.float32(0)}
    method = algorithms.ifca(POINT, rate, clusters=3, cluster_init=basins, **how)
    _, state, metrics = run(method, of_points(POINTS), start, 4)
    assert state.carry.clients.tolist() == [0, 1, 0, 1, 1, 0]
    np.testing.assert_array_equal(metrics["changed_cluster"], [np.nan, 0, 0, 0])
    w = models(state)["w"]
    for j, sign in ((0, -1), (1, 1)):
        near = [point for point in POINTS if point * sign > 0]
        alone = {"w": jnp.float32(2.0 * sign)}
        plain = ffm.fedavg(POINT, rate, **how)
        _, expected, _ = run(plain, of_points(near), alone, 4)
        np.testing.assert_allclose(w[j], expected.delta["w"], rtol=1e-6)
    # Nobody chose the third: it stays where it was, and the metrics say so.
    assert float(w[2]) == 40.0
    assert metrics["cluster_2"].tolist() == [0] * 4
    assert metrics["unchosen_clusters"].tolist() == [1] * 4


def test_other_labels_give_the_same_clusters():
    def swapped(delta, key, j):
        return basins(delta, key, (1, 0, 2)[j])

    how = {"local_steps": 2, "batch_size": 1, "clusters": 3}
    found = []
    for init in (basins, swapped):
        method = algorithms.ifca(POINT, optax.sgd(0.3), cluster_init=init, **how)
        start = {"w": jnp.float32(0)}
        _, state, _ = run(method, of_points(POINTS), start, 2)
        found.append(models(state)["w"])
    np.testing.assert_allclose(found[0][jnp.array([1, 0, 2])], found[1], rtol=1e-6)


def test_a_momentum_goes_on_only_where_somebody_chose():
    server = optax.sgd(1.0, momentum=0.9)
    how = {"local_steps": 1, "batch_size": 1, "clusters": 3, "cluster_init": basins}
    method = algorithms.ifca(POINT, optax.sgd(0.3), server, **how)
    start = {"w": jnp.float32(0)}
    _, state, _ = run(method, of_points(POINTS), start, 3)
    assert float(models(state)["w"][2]) == 40.0
    moments = jax.tree.leaves(state.carry.server.optimizer)
    assert all(float(leaf[2]) == 0 for leaf in moments)
    assert all((leaf[:2] != 0).all() for leaf in moments)


def test_equal_starts_are_told_apart_by_a_first_choice_at_random():
    """Without `cluster_init`; clients that have not taken part have the largest's model."""
    how = {"local_steps": 3, "batch_size": 1}
    method = algorithms.ifca(POINT, optax.sgd(0.3), clusters=2, **how)
    points = [point for point in POINTS for _ in range(4)]
    start = {"w": jnp.float32(0)}
    simulator, first, metrics = run(method, of_points(points), start, 1)
    assert set(first.carry.clients.tolist()) == {0, 1}
    assert float(models(first)["w"][0]) != float(models(first)["w"][1])
    state, metrics = simulator.run(first, 5)
    assert metrics["changed_cluster"][0] > 0
    assert metrics["changed_cluster"][-1] == 0
    negative = np.array(points) < 0
    chosen = np.asarray(state.carry.clients)
    assert len(set(chosen[negative])) == len(set(chosen[~negative])) == 1
    assert chosen[negative][0] != chosen[~negative][0]
    untouched = run(method, of_points(points), start, 0)[1]
    assert set(untouched.carry.clients.tolist()) == {-1}
    alone = simulator.algorithm.model(state.carry.server, jnp.int32(-1), ())[0]
    equal(alone, state.delta)


def test_ties_go_to_the_lowest():
    def same(delta, key, j):
        return delta

    method = algorithms.ifca(
        POINT, SGD, clusters=3, cluster_init=same, local_steps=1, batch_size=1
    )
    _, state, _ = run(method, of_points(POINTS), {"w": jnp.float32(0)}, 1)
    assert set(state.carry.clients.tolist()) == {0}


def test_quantised_changes_arrive_in_their_cluster():
    lossy = channels.error_feedback(channels.quantize(8))
    method = algorithms.ifca(TASK, SGD, clusters=3, cluster_init=apart, **LOCAL)
    how = {"backbone": BACKBONE, "uplink": lossy, "downlink": channels.cast()}
    _, state, metrics = run(method, CLIENTS, DELTA, ROUNDS, **how)
    expected, chosen = plain_ifca(ROUNDS, 3)
    assert state.carry.clients.tolist() == chosen
    for j, model in enumerate(expected):
        found = jax.tree.map(lambda x, j=j: x[j], models(state))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=0.05), found, model
        )
    assert metrics["uplink_bytes"][0] < 4 * BYTES


@pytest.mark.parametrize("clusters", [1, 2, 3, 4, 5, 8, 9])
def test_the_number_of_a_cluster_takes_as_many_bits_as_it_needs(clusters):
    for j in range(clusters):
        bits = bits_of(jnp.int32(j), clusters)
        assert len(bits) == int(np.ceil(np.log2(clusters)))
        assert int(number_of(bits)) == j


def test_what_is_refused():
    how = {**LOCAL, "clusters": 2}
    for bad in ({"clusters": 0}, {"clusters": 2.0}):
        with pytest.raises((TypeError, ValueError), match="clusters="):
            algorithms.ifca(TASK, SGD, **(how | bad))
    with pytest.raises(TypeError, match=r"cluster_init=0\.1"):
        algorithms.ifca(TASK, SGD, cluster_init=0.1, **how)

    def shorter(delta, key, j):
        return {"w": delta["w"]}

    method = algorithms.ifca(TASK, SGD, cluster_init=shorter, **how)
    with pytest.raises(ValueError, match=r"cluster 0: missing leaves \['v'\]"):
        run(method, CLIENTS, DELTA, 0, backbone=BACKBONE)
