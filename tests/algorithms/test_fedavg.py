"""Weights of examples and schedules over rounds, against closed forms."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm

CLIENTS = [
    {"a": np.array([1.0, 3.0], np.float32), "w": np.array([1.0, 3.0], np.float32)},
    {
        "a": np.array([-2.0, 0.0, 5.0], np.float32),
        "w": np.array([2.0, 0.0, 2.0], np.float32),
    },
]


def squared(delta, backbone, batch, key):
    return 0.5 * (delta - batch["a"]) ** 2, {}


def run(task, optimizer, rounds=1, clients=CLIENTS, **work):
    algorithm = ffm.fedavg(
        task, optimizer, **({"local_steps": 1, "batch_size": 4} | work)
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        cohort_size=len(clients),
        devices=1,
    )
    state, metrics = simulator.run(simulator.init(jnp.float32(0.0)), rounds)
    return float(state.delta), metrics


def test_task_weights_count_in_local_and_global_means():
    """One full-batch step of size eta on sum w l / sum w at each client, averaged by
    sum w, is one step on the whole.
    """
    delta, metrics = run(ffm.Task(squared, lambda batch: batch["w"]), optax.sgd(0.5))
    a, w = (np.concatenate([client[name] for client in CLIENTS]) for name in ("a", "w"))
    assert delta == pytest.approx(0.5 * np.sum(w * a) / np.sum(w), rel=1e-6)
    assert metrics["loss"][0] == pytest.approx(
        np.sum(w * 0.5 * a**2) / np.sum(w), rel=1e-6
    )
    assert metrics["examples"][0] == 5


def test_without_weights_every_example_counts_once():
    delta, metrics = run(ffm.Task(squared), optax.sgd(0.5))
    a = np.concatenate([client["a"] for client in CLIENTS])
    assert delta == pytest.approx(0.5 * a.mean(), rel=1e-6)
    assert metrics["loss"][0] == pytest.approx(np.mean(0.5 * a**2), rel=1e-6)


def test_padded_rows_count_nothing_whatever_their_weight():
    """Two examples in a batch of eight: the six repeated rows have weights, and must
    not use them.
    """
    delta, metrics = run(
        ffm.Task(squared, lambda batch: batch["w"]),
        optax.sgd(0.1),
        clients=CLIENTS[:1],
        batch_size=8,
    )
    a, w = CLIENTS[0]["a"], CLIENTS[0]["w"]
    assert delta == pytest.approx(0.1 * np.sum(w * a) / np.sum(w), rel=1e-6)
    assert metrics["loss"][0] == pytest.approx(
        np.sum(w * 0.5 * a**2) / np.sum(w), rel=1e-6
    )


def test_a_client_whose_weights_are_all_zero_changes_nothing():
    silent = [
        *CLIENTS,
        {"a": np.array([100.0], np.float32), "w": np.array([0.0], np.float32)},
    ]
    task = ffm.Task(squared, lambda batch: batch["w"])
    assert run(task, optax.sgd(0.5), clients=silent)[0] == pytest.approx(
        run(task, optax.sgd(0.5))[0], rel=1e-6
    )


def test_clients_see_the_number_of_the_round():
    a = np.mean(np.concatenate([client["a"] for client in CLIENTS]))
    delta, _ = run(
        ffm.Task(squared),
        lambda round_index: optax.sgd(jnp.asarray([0.5, 0.1, 0.0])[round_index]),
        rounds=3,
    )
    expected = 0.0
    for rate in (0.5, 0.1, 0.0):
        expected -= rate * (expected - a)
    assert delta == pytest.approx(expected, rel=1e-5)


def test_a_client_weighs_what_it_holds_not_what_its_steps_saw():
    """Ten examples each and one step of two of them: the shares are those of all ten,
    as n_k would be.
    """
    rng = np.random.default_rng(0)
    clients = [
        {
            "a": np.full(10, k, np.float32),
            "w": rng.uniform(0.5, 3.0, 10).astype(np.float32),
        }
        for k in (1.0, -2.0, 4.0)
    ]
    task = ffm.Task(squared, lambda batch: batch["w"])
    delta, _ = run(task, optax.sgd(0.5), clients=clients, batch_size=2)
    shares = np.array([client["w"].sum() for client in clients])
    moves = np.array(
        [0.5 * client["a"][0] for client in clients]
    )  # one step from 0, whichever rows it saw
    assert delta == pytest.approx(np.sum(shares * moves) / np.sum(shares), rel=1e-6)
