"""Gossip: what mixing keeps, how fast models agree, a plain loop, and who is never met."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import edge_bytes, gossip, graphs

N, STEPS, RATE = 8, 3, 0.05
TASK = ffm.Task(mlp_loss)
CLIENTS = make_clients(sizes=(6,) * N)
HOW = {"local_steps": STEPS, "batch_size": 8}
GRAPHS = {
    "ring": graphs.ring(N),
    "complete": graphs.complete(N),
    "star": [(0, k) for k in range(1, N)],
    "path": [(k, k + 1) for k in range(N - 1)],
    "odd": [*graphs.ring(N), (0, 4), (0, 5), (2, 6)],
}


def run(algorithm, rounds, clients=CLIENTS, **how):
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(clients)
    settings = {"cohort_size": len(clients), "devices": 2} | how
    one = ffm.Simulator(algorithm, population, backbone=backbone, **settings)
    return one, *one.run(one.init(delta), rounds)


def trained(delta, client):
    _, backbone = make_trees()
    batch = jax.tree.map(jnp.asarray, CLIENTS[client])

    def loss(d):
        return jnp.mean(mlp_loss(d, backbone, batch, None)[0])

    for _ in range(STEPS):
        delta = jax.tree.map(lambda w, g: w - RATE * g, delta, jax.grad(loss)(delta))
    return delta


def close(a, b, tolerance=1e-6):
    def one(x, y):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

    jax.tree.map(one, a, b)


def then_still(round_index):
    """A step of SGD in the first round, none in the others."""
    return optax.sgd(jnp.where(round_index == 0, RATE, 0.0))


# Matrices


@pytest.mark.parametrize("name", GRAPHS)
def test_metropolis_weights_are_doubly_stochastic(name):
    mixing = graphs.metropolis(GRAPHS[name], N)
    np.testing.assert_array_equal(mixing, mixing.T)
    np.testing.assert_allclose(mixing.sum(axis=0), 1, rtol=1e-15)
    assert (mixing >= 0).all()
    degrees = np.zeros(N, int)
    for i, j in GRAPHS[name]:
        degrees[[i, j]] += 1
    for i, j in GRAPHS[name]:
        assert mixing[i, j] == 1 / (1 + max(degrees[i], degrees[j]))
    assert graphs.second_eigenvalue(mixing) < 1
    values = np.sort(np.abs(np.linalg.eigvals(mixing)))
    assert graphs.second_eigenvalue(mixing) == pytest.approx(values[-2], abs=1e-12)


def test_the_eigenvalue_of_a_ring_is_the_cosine():
    for n in (5, 8, 13):
        found = graphs.second_eigenvalue(graphs.metropolis(graphs.ring(n), n))
        assert found == pytest.approx((1 + 2 * np.cos(2 * np.pi / n)) / 3)


def test_a_graph_in_parts_is_refused_and_they_are_named():
    edges = [(0, 1), (1, 2), (3, 4)]
    said = r"graph of 6 clients is not connected: \{0, 1, 2\}, \{3, 4\}, \{5\}"
    with pytest.raises(ValueError, match=said):
        graphs.metropolis(edges, 6)
    split = np.kron(np.eye(2), np.full((4, 4), 0.25))
    method = gossip(TASK, optax.sgd(RATE), mixing=split, **HOW)
    with pytest.raises(ValueError, match=r"\{0, 1, 2, 3\}, \{4, 5, 6, 7\}"):
        run(method, 1)


@pytest.mark.parametrize(
    ("mixing", "said"),
    [
        (np.eye(3), r"mixing as numbers \[8, 8\].*float64\[3, 3\]"),
        (np.eye(N, k=1) + 0.5 * np.eye(N), "add up to 1, got"),
        (np.eye(N) * 2 - np.full((N, N), 1 / N), "negative entry"),
        (np.full((N, N), np.nan), "negative entry or NaN"),
    ],
)
def test_matrices_that_do_not_keep_means_are_refused(mixing, said):
    method = gossip(TASK, optax.sgd(RATE), mixing=mixing, **HOW)
    with pytest.raises(ValueError, match=said):
        run(method, 1)


def test_arguments_of_another_kind():
    with pytest.raises(TypeError, match="expected mixing as an array"):
        gossip(TASK, optax.sgd(RATE), mixing="ring", **HOW)
    for edge in ((0, 0), (0, 9), (-1, 2)):
        with pytest.raises(ValueError, match="two of the clients 0 to 7"):
            graphs.metropolis([edge], N)


# Rounds


@pytest.mark.parametrize("name", GRAPHS)
def test_it_is_the_plain_loop(name):
    mixing = graphs.metropolis(GRAPHS[name], N)
    method = gossip(TASK, optax.sgd(RATE), mixing=mixing, **HOW)
    simulator, state, metrics = run(method, 3)
    delta, _ = make_trees()
    models = [delta] * N
    for _ in range(3):
        mixed = [
            jax.tree.map(
                lambda *x, row=row: sum(w * y for w, y in zip(row, x, strict=True)),
                *models,
            )
            for row in mixing
        ]
        models = [trained(start, k) for k, start in enumerate(mixed)]
    for k in range(N):
        close(simulator.model(state, k)[0], models[k], 2e-5)
    mean = jax.tree.map(lambda *x: sum(x) / N, *models)
    close(state.delta, mean, 2e-5)
    apart = [
        jax.tree.map(lambda x, m: ((x - m) ** 2).sum(), one, mean) for one in models
    ]
    total = sum(sum(jax.tree.leaves(one)) for one in apart)
    assert metrics["consensus"][-1] == pytest.approx(np.sqrt(total / N), rel=1e-4)


def test_on_a_complete_graph_it_is_fedavg():
    mixing = graphs.metropolis(graphs.complete(N), N)
    np.testing.assert_allclose(mixing, 1 / N, rtol=1e-15)
    method = gossip(TASK, optax.sgd(RATE), mixing=mixing, **HOW)
    _, state, _ = run(method, 4)
    _, expected, _ = run(ffm.fedavg(TASK, optax.sgd(RATE), **HOW), 4)
    close(state.delta, expected.delta, 1e-6)


@pytest.mark.parametrize("name", GRAPHS)
def test_mixing_keeps_the_mean_and_brings_models_together(name):
    """By the second eigenvalue at least, in every round without training."""
    mixing = graphs.metropolis(GRAPHS[name], N)
    method = gossip(TASK, then_still, mixing=mixing, **HOW)
    _, first, _ = run(method, 1)
    _, state, metrics = run(method, 6)
    close(state.delta, first.delta, 1e-6)
    shrunk = metrics["consensus"]
    rate = graphs.second_eigenvalue(mixing)
    assert shrunk[0] > 1e-3
    assert (shrunk[1:] <= rate * shrunk[:-1] + 1e-6).all()
    if name == "complete":
        assert shrunk[1] < 1e-6


def test_the_bound_is_met_by_the_second_eigenvector():
    """Clients whose gradients are an eigenvector disagree along it ever after."""
    mixing = graphs.metropolis(graphs.ring(N), N)
    values, vectors = np.linalg.eigh(mixing)
    along, rate = vectors[:, -2], values[-2]
    clients = [{"x": np.array([x], np.float32)} for x in along]
    task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
    method = gossip(task, then_still, mixing=mixing, local_steps=1, batch_size=1)
    one = ffm.Simulator(method, ffm.Population.from_clients(clients), cohort_size=N)
    _, metrics = one.run(one.init(jnp.float32(0)), 5)
    found = metrics["consensus"]
    np.testing.assert_allclose(found[1:] / found[:-1], rate, rtol=1e-4)


def test_whole_numbers_keep_their_mean_to_the_bit():
    """On a graph whose weights are quarters, nothing is rounded."""
    mixing = graphs.metropolis(graphs.complete(4), 4)
    clients = [{"x": np.array([x], np.float32)} for x in (8, 16, -40, 64)]
    task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))

    def still(round_index):
        return optax.sgd(jnp.where(round_index == 0, 1.0, 0.0))

    method = gossip(task, still, mixing=mixing, local_steps=1, batch_size=1)
    one = ffm.Simulator(method, ffm.Population.from_clients(clients), cohort_size=4)
    state, metrics = one.run(one.init(jnp.float32(0)), 4)
    assert float(state.delta) == (8 + 16 - 40 + 64) / 4
    assert metrics["consensus"][1:].tolist() == [0, 0, 0]


def test_bytes_on_every_edge():
    edges = GRAPHS["odd"]
    mixing = graphs.metropolis(edges, N)
    method = gossip(TASK, optax.sgd(RATE), mixing=mixing, **HOW)
    size = 4 * (12 + 4)
    _, _, metrics = run(method, 2)
    assert (metrics["links"] == 2 * len(edges)).all()
    assert (metrics["uplink_bytes"] == N * size).all()
    assert (metrics["downlink_bytes"] == 0).all()
    np.testing.assert_array_equal(edge_bytes(metrics), 2 * len(edges) * size)
    eight = channels.quantize(bits=8)
    _, _, smaller = run(method, 2, uplink=eight)
    per_edge = edge_bytes(smaller) / smaller["links"]
    np.testing.assert_allclose(per_edge, smaller["uplink_bytes"] / N)
    assert (per_edge < 0.5 * size).all()


def test_who_drops_out_keeps_what_it_had():
    mixing = graphs.metropolis(graphs.ring(N), N)
    method = gossip(TASK, optax.sgd(RATE), mixing=mixing, **HOW)
    drops = ffm.Behaviour(drops=lambda client, round_index, key: client == 3)
    simulator, state, metrics = run(method, 2, behaviour=drops)
    delta, _ = make_trees()
    close(simulator.model(state, 3)[0], delta)
    assert (metrics["links"] == 2 * N - 2).all()


def test_a_lossy_channel_with_its_residual_still_agrees():
    mixing = graphs.metropolis(graphs.ring(N), N)
    method = gossip(TASK, optax.sgd(RATE), mixing=mixing, **HOW)
    feedback = channels.error_feedback(channels.top_k(0.5))
    _, state, metrics = run(method, 60, uplink=feedback)
    _, plain, _ = run(method, 60)
    assert metrics["loss"][-1] < 0.7 * metrics["loss"][0]
    close(state.delta, plain.delta, 0.1)
