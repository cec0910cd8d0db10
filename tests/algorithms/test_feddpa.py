"""FedDPA's exact invariants (Yang et al. 2024): what is private, what is federated, and what
they make of each other.
"""

import jax
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.feddpa import feddpa_f, feddpa_t

RATE, STEPS, ROUNDS = 0.05, 3, 3
CLIENTS = make_clients(sizes=(6, 1, 4, 2))
DELTA, BACKBONE = make_trees()
TASK = ffm.Task(mlp_loss)
LOCAL = {
    "local_steps": STEPS,
    "batch_size": 8,
}  # every batch is all of a client's examples


def both(adapters, backbone, batch, key):
    mixed = jax.tree.map(
        lambda g, p: (1 - adapters.mix) * g + adapters.mix * p,
        adapters.shared,
        adapters.private,
    )
    return mlp_loss(mixed, backbone, batch, key)


def simulator(algorithm):
    return ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(CLIENTS),
        backbone=BACKBONE,
        cohort_size=len(CLIENTS),
        devices=1,
        seed=3,
    )


def run(algorithm, delta=DELTA, rounds=ROUNDS):
    one = simulator(algorithm)
    return one.run(one.init(delta), rounds)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b
    )


def loop(client, shared, private, mix, steps):
    """Plain gradient descent of the private adapter, with its gradient written out."""
    x, y = client["x"], client["y"]
    shared, private = (jax.tree.map(np.asarray, tree) for tree in (shared, private))
    for _ in range(steps):
        w, v = ((1 - mix) * shared[name] + mix * private[name] for name in ("w", "v"))
        hidden = np.tanh(x @ (BACKBONE["w"] + w))
        slope = 2 * (hidden @ v - y) / len(y)
        gradient = {
            "v": hidden.T @ slope,
            "w": x.T @ (slope[:, None] * v * (1 - hidden**2)),
        }
        private = {
            name: private[name] - RATE * mix * gradient[name] for name in private
        }
    return private


def of_client(store, k):
    return jax.tree.map(lambda x: x[k], store)


@pytest.fixture(scope="module")
def fedit():
    return run(ffm.fedavg(TASK, optax.sgd(RATE), **LOCAL))


@pytest.fixture(scope="module")
def dual():
    one = simulator(feddpa_t(TASK, ffm.Task(both), optax.sgd(RATE), **LOCAL))
    start = one.init(DELTA)
    first, _ = one.run(start, 1)
    return one, first, one.run(start, ROUNDS)


def test_shared_adapter_and_bytes_are_those_of_fedit(fedit, dual):
    """Private adapters cost zero bits and leave no trace in what is federated."""
    (alone, alone_metrics), (one, _, (state, metrics)) = fedit, dual
    close(state.delta, alone.delta)
    np.testing.assert_allclose(metrics["loss"], alone_metrics["loss"], rtol=1e-5)
    for name in ("uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(metrics[name], alone_metrics[name])
        assert metrics[name][0] == len(CLIENTS) * ffm.trees.nbytes(DELTA)
    assert (
        ffm.trees.difference(one.messages.uploads[0], ffm.trees.shapes(DELTA)) is None
    )


def test_private_adapters_never_leave(dual):
    """Whatever private adapters start from, the server's bits are the same."""

    def noisy(delta, key):
        return jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), delta)

    state, metrics = run(
        feddpa_t(TASK, ffm.Task(both), optax.sgd(RATE), **LOCAL, private_init=noisy)
    )
    _, _, (expected, seen) = dual
    equal(state.delta, expected.delta)
    assert (metrics["private_loss"] != seen["private_loss"]).all()
    starts = [state.carry.clients["w"][k] for k in range(len(CLIENTS))]
    assert len({x.tobytes() for x in map(np.asarray, starts)}) == len(
        CLIENTS
    )  # the key is the client's


def test_private_adapters_are_trained_beside_the_received_one(dual):
    _, first, (state, _) = dual
    for k, client in enumerate(CLIENTS):
        close(of_client(first.carry.clients, k), loop(client, DELTA, DELTA, 0.5, STEPS))
    # The second round goes on from there, beside the adapter that the first round ended with.
    again, _ = dual[0].run(first, 1)
    for k, client in enumerate(CLIENTS):
        mine = of_client(first.carry.clients, k)
        close(
            of_client(again.carry.clients, k),
            loop(client, first.delta, mine, 0.5, STEPS),
        )
    assert state.round == ROUNDS


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_the_ends_of_the_mix(mix):
    """a = 0: no gradient, not a bit moves. a = 1: the private adapter alone, as by
    local-only training.
    """
    state, metrics = run(
        feddpa_t(TASK, ffm.Task(both), optax.sgd(RATE), **LOCAL, mix=mix), rounds=1
    )
    for k, client in enumerate(CLIENTS):
        private = of_client(state.carry.clients, k)
        if mix == 0:
            equal(private, DELTA)
            np.testing.assert_allclose(
                metrics["private_loss"][0], _mean_loss(DELTA), rtol=1e-5
            )
        else:
            close(
                private,
                loop(client, jax.tree.map(np.zeros_like, DELTA), DELTA, 1.0, STEPS),
            )


def _mean_loss(delta):
    x, y = (np.concatenate([client[name] for client in CLIENTS]) for name in ("x", "y"))
    return np.mean((np.tanh(x @ (BACKBONE["w"] + delta["w"])) @ delta["v"] - y) ** 2)


def start_of_private(delta, key):
    return jax.tree.map(lambda x: x + 0.1, delta)


F = {
    **LOCAL,
    "rounds": ROUNDS,
    "private_steps": 5,
    "mix": 0.25,
    "private_init": start_of_private,
}


def test_f_is_fedit_and_then_a_private_adapter_beside_it(fedit):
    algorithm = feddpa_f(TASK, ffm.Task(both), optax.sgd(RATE), **F)
    one = simulator(algorithm)
    state, metrics = one.run(one.init(DELTA), ROUNDS)
    close(state.delta, fedit[0].delta)
    for name in ("clients", "examples", "uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(metrics[name], fedit[1][name])
    equal(of_client(state.carry.clients, 1), start_of_private(DELTA, None))
    end, personal = one.run(state, 1)
    equal(end.delta, state.delta)
    for k, client in enumerate(CLIENTS):
        expected = loop(client, state.delta, start_of_private(DELTA, None), 0.25, 5)
        close(of_client(end.carry.clients, k), expected)
    assert personal["uplink_bytes"][0] == 0
    assert personal["downlink_bytes"][0] == len(CLIENTS) * ffm.trees.nbytes(DELTA)
    assert np.isfinite(personal["loss"][0])
    again, nobody = one.run(end, 2)
    equal(again.carry.clients, end.carry.clients)
    assert nobody["clients"].tolist() == nobody["downlink_bytes"].tolist() == [0, 0]


def test_f_draws_cohorts_and_then_everybody():
    momentum = optax.sgd(0.5, momentum=0.9)
    algorithm = feddpa_f(TASK, ffm.Task(both), optax.sgd(RATE), momentum, **F)
    clients = ffm.Population.from_clients(CLIENTS)
    one = ffm.Simulator(algorithm, clients, backbone=BACKBONE, cohort_size=2, seed=3)
    state, metrics = one.run(one.init(DELTA), ROUNDS + 1)
    assert metrics["clients"].tolist() == [2] * ROUNDS + [len(CLIENTS)]
    plain = ffm.fedavg(TASK, optax.sgd(RATE), momentum, **LOCAL)
    other = ffm.Simulator(plain, clients, backbone=BACKBONE, cohort_size=2, seed=3)
    close(state.delta, other.run(other.init(DELTA), ROUNDS)[0].delta)


def test_the_model_has_both_adapters_and_the_server_its_own_alone():
    one = simulator(feddpa_f(TASK, ffm.Task(both), optax.sgd(RATE), **F))
    state, _ = one.run(one.init(DELTA), ROUNDS + 1)
    arrays = CLIENTS[0]
    delta, backbone = one.model(state)
    alone = ffm.evaluate(TASK, state.delta, backbone, arrays)
    np.testing.assert_allclose(
        ffm.evaluate(ffm.Task(both), delta, backbone, arrays)["loss"],
        alone["loss"],
        rtol=1e-6,
    )
    mine, _ = one.model(state, 2)
    equal(mine.private, of_client(state.carry.clients, 2))
    assert float(mine.mix) == 0.25


@pytest.mark.parametrize(
    ("make", "how"), [(feddpa_t, {}), (feddpa_f, {"private_steps": 1, "rounds": 2})]
)
def test_impossible_mixes_are_refused(make, how):
    with pytest.raises(ValueError, match=r"mix=1\.5"):
        make(TASK, ffm.Task(both), optax.sgd(RATE), **LOCAL, **how, mix=1.5)
