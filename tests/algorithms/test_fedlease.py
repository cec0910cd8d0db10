"""FedLEASE: clusters against scipy, rounds in plain loops, the views of clients, bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fedlease_problem import (
    CLIENTS,
    HOW,
    LABELS,
    OUT,
    RANK,
    RATE,
    D,
    draw,
    loss,
    make_delta,
    swapped,
    train,
)
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.algorithms.lora_rules.experts import split_experts


def simulator(labels=LABELS, m=2, clients=CLIENTS, **how):
    method = lora_rules.fedlease(
        ffm.Task(loss), optax.sgd(RATE), labels=labels, **HOW, **how
    )
    population = ffm.Population.from_clients(clients)
    one = ffm.Simulator(method, population, cohort_size=len(clients), devices=1)
    return one, one.init(make_delta(m))


def test_rounds_are_means_over_clusters():
    one, state = simulator()
    delta = make_delta()
    routers = [delta["layer"]["router"]] * 2
    for _ in range(2):
        ends = [
            train(delta, routers[j], client, j)
            for client, j in zip(CLIENTS, LABELS, strict=True)
        ]
        after = {"layer": {}, "head": np.mean([end["head"] for end in ends], axis=0)}
        members = [
            [e for e, k in zip(ends, LABELS, strict=True) if k == j] for j in range(2)
        ]
        for name in ("expert_a", "expert_b"):
            means = [
                np.mean([e["layer"][name][0] for e in group], axis=0)
                for group in members
            ]
            after["layer"][name] = np.stack(means)
        routers = [
            np.mean([e["layer"]["router"] for e in group], 0) for group in members
        ]
        delta = {**after, "layer": {**after["layer"], "router": routers[0]}}
        state, metrics = one.run(state, 1)
        for name in ("expert_a", "expert_b", "router"):
            ours = state.delta["layer"][name]
            np.testing.assert_allclose(ours, delta["layer"][name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            state.delta["head"], delta["head"], rtol=1e-4, atol=1e-5
        )
        both = state.carry.server.routers["layer"]
        np.testing.assert_allclose(both, np.stack(routers), rtol=1e-4, atol=1e-5)
    expert, router = RANK * (D + OUT), D * 3
    assert metrics["uplink_bytes"].tolist() == [6 * 4 * (expert + router + OUT)]
    assert metrics["downlink_bytes"].tolist() == [6 * 4 * (2 * expert + router + OUT)]
    for client, cluster in ((0, 0), (1, 1)):
        view, _ = one.model(state, client)
        expected = swapped(state.delta["layer"], cluster)["expert_a"]
        np.testing.assert_array_equal(view["layer"]["expert_a"], expected)
        np.testing.assert_array_equal(view["layer"]["router"], both[cluster])


def test_one_cluster_is_fedit():
    one, state = simulator(labels=(0,) * 6, m=1, weighted=True)
    start = make_delta(1)

    def plain(delta, backbone, batch, key):
        hidden = batch["x"] @ delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
        return (jnp.tanh(hidden) @ delta["head"] - batch["y"]) ** 2, {}

    layer = {f"lora_{x}": start["layer"][f"expert_{x}"][0] for x in "ab"}
    fedit = lora_rules.fedit(ffm.Task(plain), optax.sgd(RATE), **HOW)
    population = ffm.Population.from_clients(CLIENTS)
    other = ffm.Simulator(fedit, population, cohort_size=6, devices=1)
    same, _ = other.run(other.init({"layer": layer, "head": start["head"]}), 3)
    state, _ = one.run(state, 3)
    for x in "ab":
        ours = state.delta["layer"][f"expert_{x}"][0]
        np.testing.assert_allclose(
            ours, same.delta["layer"][f"lora_{x}"], rtol=1e-4, atol=1e-6
        )
    router = start["layer"]["router"]  # it has one output, which says nothing
    np.testing.assert_array_equal(state.delta["layer"]["router"], router)


def test_a_cluster_without_uploads_stays_to_the_bit():
    one, state = simulator(labels=(1, 1), clients=CLIENTS[:2])
    after, _ = one.run(state, 1)
    for name in ("expert_a", "expert_b"):
        before, ours = state.delta["layer"][name], after.delta["layer"][name]
        np.testing.assert_array_equal(ours[0], before[0])
        assert np.any(ours[1] != before[1])


# Clusters


def adapter(seed, centre):
    stacked = draw(centre, 2, RANK, OUT) + 0.2 * draw(100 + seed, 2, RANK, OUT)
    single = draw(centre + 50, RANK, OUT) + 0.2 * draw(200 + seed, RANK, OUT)
    return {
        "many": {"lora_a": draw(seed, 2, D, RANK), "lora_b": stacked},
        "one": {"lora_a": draw(seed, D, RANK), "lora_b": single},
    }


def cosine_distance(x, y):
    return 1 - np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y)


def test_clusters_are_scipys_and_find_the_tasks():
    tasks = [7, 8, 7, 9, 8, 7, 9, 8]
    deltas = [adapter(k, centre) for k, centre in enumerate(tasks)]
    found = lora_rules.cluster_adapters(deltas, most=5)
    assert found.labels.tolist() == [0, 1, 0, 2, 1, 0, 2, 1]
    matrices = [[*delta["many"]["lora_b"], delta["one"]["lora_b"]] for delta in deltas]
    distances = [
        [
            np.mean([cosine_distance(x, y) for x, y in zip(a, b, strict=True)])
            for b in matrices
        ]
        for a in matrices
    ]
    np.testing.assert_allclose(found.distances, distances, atol=1e-6)
    tree = hierarchy.average(squareform(found.distances, checks=False))
    for k, ours in found.silhouettes.items():
        labels = hierarchy.fcluster(tree, k, "maxclust")
        np.testing.assert_allclose(
            ours, silhouette(np.array(distances), labels), atol=1e-6
        )
    assert max(found.silhouettes, key=found.silhouettes.get) == 3


def silhouette(distances, labels):
    """Rousseeuw 1987, sum by sum."""
    total = 0.0
    for i in range(len(labels)):
        same = [j for j in range(len(labels)) if labels[j] == labels[i] and j != i]
        if not same:
            continue
        a = sum(distances[i][j] for j in same) / len(same)
        b = min(
            np.mean([distances[i][j] for j in range(len(labels)) if labels[j] == other])
            for other in set(labels) - {labels[i]}
        )
        total += (b - a) / max(a, b)
    return total / len(labels)


def test_experts_start_from_the_means_of_their_clusters():
    adapters = [
        {
            "layer": {"lora_a": draw(k, D, RANK), "lora_b": draw(9 + k, RANK, OUT)},
            "head": draw(k, OUT),
        }
        for k in range(3)
    ]
    start = lora_rules.expert_start(make_delta(), adapters, [1, 0, 1])
    for x in "ab":
        each = [one["layer"][f"lora_{x}"] for one in adapters]
        expected = np.stack([each[1], (each[0] + each[2]) / 2])
        np.testing.assert_allclose(start["layer"][f"expert_{x}"], expected, rtol=1e-6)
    mean = np.mean([one["head"] for one in adapters], axis=0)
    np.testing.assert_allclose(start["head"], mean, rtol=1e-6)
    np.testing.assert_array_equal(
        start["layer"]["router"], make_delta()["layer"]["router"]
    )


def test_impossible_arguments_are_refused():
    adapters = [adapter(k, 7) for k in range(3)]
    with pytest.raises(ValueError, match="three clients or more, got 2"):
        lora_rules.cluster_adapters(adapters[:2], most=2)
    with pytest.raises(ValueError, match=r"most.* got most=3"):
        lora_rules.cluster_adapters(adapters, most=3)
    with pytest.raises(
        ValueError, match=r"label of \[0, 1\] for each of 3 .*\[0, 0, 0\]"
    ):
        lora_rules.expert_start(make_delta(), adapters, [0, 0, 0])
    with pytest.raises(ValueError, match=r"'layer\.lora_a' in every client's delta"):
        lora_rules.expert_start(make_delta(), adapters, [0, 1, 0])
    with pytest.raises(ValueError, match=r"labels=\[0, -1\]"):
        simulator(labels=[0, -1])
    with pytest.raises(ValueError, match=r"clusters below 2, the experts .* got 2"):
        simulator(labels=[2] * 6)
    with pytest.raises(ValueError, match="each of 6 clients, got 1"):
        simulator(labels=[0])
    with pytest.raises(ValueError, match=r"expert_a, expert_b and router .*\['w'\]"):
        split_experts({"w": jnp.zeros(3)})


def test_the_warm_up_is_local_training_and_has_a_bill():
    """Each client's adapter as it is after training alone, and both ways of the wire."""

    def pair_loss(delta, backbone, batch, key):
        hidden = jnp.tanh(batch["x"] @ delta["lora_a"] @ delta["lora_b"])
        return (hidden @ delta["head"] - batch["y"]) ** 2, {}

    delta = {
        "lora_a": draw(1, D, RANK),
        "lora_b": draw(2, RANK, OUT),
        "head": draw(3, OUT),
    }
    task, rate = ffm.Task(pair_loss), optax.sgd(RATE)
    population = ffm.Population.from_clients(CLIENTS)
    n = len(CLIENTS)
    method = lora_rules.fedlease_warm_up(task, rate, **HOW)
    one = ffm.Simulator(method, population, cohort_size=n, devices=1)
    start = one.init(delta)
    state, metrics = one.run(start, 1)
    alone = ffm.algorithms.local_only(task, rate, **HOW)
    other = ffm.Simulator(alone, population, cohort_size=n, devices=1)
    trained, _ = other.run(other.init(delta), 1)
    for k, found in enumerate(state.carry.server.deltas()):
        expected, _ = other.model(trained, k)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            found,
            expected,
        )
    numbers = RANK * (D + OUT) + OUT
    assert metrics["uplink_bytes"].tolist() == [4 * n * numbers]
    assert metrics["downlink_bytes"].tolist() == [4 * n * numbers]
    jax.tree.map(np.testing.assert_array_equal, state.delta, delta)
    half = ffm.Simulator(method, population, cohort_size=n - 1, devices=1)
    state, _ = half.run(half.init(delta), 1)
    with pytest.raises(ValueError, match="1 clients have sent no adapter"):
        state.carry.server.deltas()
