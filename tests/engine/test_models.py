"""One client's state and model, wherever states lie; another seed."""

import jax
import numpy as np
import optax
import pytest
from compiles import Compiles
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms import local_only

CLIENTS = make_clients(sizes=(6, 1, 4, 2, 3))
DELTA, BACKBONE = make_trees()
TASK = ffm.Task(mlp_loss)
POPULATION = ffm.Population.from_clients(CLIENTS)


def simulator(**how):
    algorithm = local_only(TASK, optax.sgd(0.05), local_steps=2, batch_size=4)
    how = {"cohort_size": 2, "devices": 1} | how
    return ffm.Simulator(algorithm, POPULATION, backbone=BACKBONE, **how)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("states", ["device", "host"])
def test_a_clients_state_wherever_it_lies(states, shared, monkeypatch):
    plain = simulator()
    expected, _ = plain.run(plain.init(DELTA), 3)
    if shared:
        monkeypatch.setattr("fedjax_fm.engine.simulator.SHARED_FROM", 0)
    other = simulator(states=states, devices=2, block_size=1)
    state, _ = other.run(other.init(DELTA), 3)
    assert other.engine.shares_states == (shared and states == "device")
    for k in range(len(CLIENTS)):
        mine = jax.tree.map(lambda x, k=k: x[k], expected.carry.clients)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            other.client_state(state, k),
            mine,
        )
        equal(other.model(state, k)[0], other.client_state(state, k))


def test_a_spilled_state_of_somebody_who_never_came_is_the_start():
    one = simulator(states="host", sampler=ffm.population.samplers.fixed([0, 1]))
    state, _ = one.run(one.init(DELTA), 1)
    equal(one.client_state(state, 4), DELTA)


@pytest.mark.parametrize("client", [-1, 5, 1.5, True])
def test_there_is_no_such_client(client):
    one = simulator()
    with pytest.raises((TypeError, ValueError), match="client"):
        one.model(one.init(DELTA), client)


def test_a_method_without_personal_models_gives_the_servers():
    algorithm = ffm.fedavg(TASK, optax.sgd(0.05), local_steps=1, batch_size=4)
    one = ffm.Simulator(algorithm, POPULATION, backbone=BACKBONE, cohort_size=2)
    state, _ = one.run(one.init(DELTA), 1)
    equal(one.model(state, 3)[0], state.delta)
    assert not one.is_personal
    assert one.client_state(state, 3) == ()


def test_the_seed_of_a_state_is_the_seed_of_its_rounds():
    one, other = simulator(seed=0), simulator(seed=7)
    first, metrics = one.run(one.init(DELTA, seed=7), 2)
    second, same = other.run(other.init(DELTA), 2)
    equal(first.carry, second.carry)
    np.testing.assert_array_equal(metrics["loss"], same["loss"])
    zero, _ = one.run(one.init(DELTA), 2)
    assert any(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(zero.carry), jax.tree.leaves(first.carry), strict=True
        )
    )


@pytest.mark.parametrize("how", [{}, {"states": "host"}, {"data": "host"}])
def test_a_new_seed_compiles_nothing(how):
    one = simulator(**how)
    one.run(one.init(DELTA), 2)
    with Compiles() as counted:
        one.run(one.init(DELTA, seed=3), 2)
    assert counted.names == []


@pytest.mark.parametrize("how", [{}, {"states": "host"}, {"data": "host"}])
def test_other_data_of_the_same_shapes(how):
    one = simulator(**how)
    start = one.init(DELTA)
    one.run(start, 1)
    turned = ffm.Population.from_clients(
        [{k: v[::-1].copy() for k, v in client.items()} for client in CLIENTS]
    )
    other = one.with_population(turned)
    state, metrics = other.run(other.init(DELTA), 2)
    fresh = ffm.Simulator(
        one.algorithm, turned, backbone=BACKBONE, cohort_size=2, devices=1, **how
    )
    expected, same = fresh.run(fresh.init(DELTA), 2)
    np.testing.assert_array_equal(metrics["loss"], same["loss"])
    for k in range(len(CLIENTS)):
        equal(other.client_state(state, k), fresh.client_state(expected, k))
    assert one.population is POPULATION


def test_other_data_of_other_shapes_and_of_other_clients():
    one = simulator()
    one.init(DELTA)
    longer = ffm.Population.from_clients(make_clients(sizes=(9, 1, 4, 2, 3)))
    other = one.with_population(longer)
    state, _ = other.run(other.init(DELTA), 1)
    assert other.engine.n_max == 9
    assert one.engine.n_max == 6
    with pytest.raises(
        ValueError, match="expected a population of 5 clients, as before, got 4"
    ):
        one.with_population(ffm.Population.from_clients(CLIENTS[:4]))
    assert state.round == 1
