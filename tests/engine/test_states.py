"""Clients' states on the devices: shared among them, taken over by the rounds, the same
numbers either way.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from kept_states import close, private_beside_shared, rows
from mlp_problem import lossy, make_clients, make_trees

import fedjax_fm as ffm
from fedjax_fm.algorithms import local_only
from fedjax_fm.engine import simulator as simulator_module
from fedjax_fm.engine.devices import CLIENTS


def run(n_clients=8, rounds=4, *, donate=False, at_once=True, **how):
    delta, backbone = make_trees()
    sizes = [3 + k % 5 for k in range(n_clients)]
    simulator = ffm.Simulator(
        private_beside_shared(),
        ffm.Population.from_clients(make_clients(sizes=sizes)),
        backbone=backbone,
        cohort_size=5,
        uplink=lossy(),
        seed=2,
        **how,
    )
    state = simulator.init(delta)
    for n in [rounds] if at_once else [1] * rounds:
        state, _ = simulator.run(state, n, donate=donate)
    return simulator, state


@pytest.mark.parametrize(("n_clients", "devices"), [(8, 2), (8, 5), (11, 4)])
def test_shared_states_are_the_whole_ones(monkeypatch, n_clients, devices):
    _, whole = run(n_clients, devices=1)
    monkeypatch.setattr(simulator_module, "SHARED_FROM", 0)
    simulator, shared = run(n_clients, devices=devices, block_size=1)
    assert f"shared by {devices} devices" in repr(simulator)
    leaves = jax.tree.leaves((shared.carry.clients, shared.carry.uplinks))
    for leaf in leaves:
        assert leaf.sharding.spec == P(CLIENTS)
        assert leaf.addressable_shards[0].data.shape[0] == -(-n_clients // devices)
    close(shared.delta, whole.delta)
    close(rows(shared, n_clients), rows(whole, n_clients))
    assert ffm.testing.compile_count(simulator) == 1


def test_a_device_holds_its_part_and_little_else(monkeypatch):
    """The compiled rounds neither gather the store nor copy it."""
    monkeypatch.setattr(simulator_module, "SHARED_FROM", 0)
    n, width = 4096, 256
    population = ffm.Population.from_arrays(
        {"x": np.ones((n, width), np.float32)}, np.arange(n + 1)
    )
    task = ffm.Task(
        lambda delta, backbone, batch, key: (
            jnp.sum((batch["x"] - delta["w"]) ** 2, axis=1),
            {},
        )
    )
    algorithm = local_only(task, optax.sgd(0.1), local_steps=1, batch_size=1)
    simulator = ffm.Simulator(algorithm, population, cohort_size=8, devices=4)
    state = simulator.init({"w": jnp.zeros(width)})
    arguments = (simulator.backbone, simulator.data, jnp.int32(1), simulator.key)
    found = (
        simulator.programs.fused.lower(state.carry, *arguments)
        .compile()
        .memory_analysis()
    )
    store, data = 4 * n * width, 4 * n * width
    assert simulator.shapes.bytes_of_states == store
    assert found.argument_size_in_bytes < data + store / 4 + 100_000
    assert found.temp_size_in_bytes < store / 16


@pytest.mark.parametrize(
    "how", [{"devices": 1}, {"devices": 2}, {"data": "host"}], ids=str
)
def test_rounds_that_take_over_the_states_give_the_same_bits(how):
    _, kept = run(at_once=False, **how)
    _, donated = run(at_once=False, donate=True, **how)
    jax.tree.map(np.testing.assert_array_equal, kept.carry, donated.carry)


def test_what_is_taken_over_and_what_stays_the_callers():
    delta, backbone = make_trees()
    delta = jax.tree.map(jnp.asarray, delta)
    simulator = ffm.Simulator(
        private_beside_shared(),
        ffm.Population.from_clients(make_clients()),
        backbone=backbone,
        cohort_size=5,
    )
    state = simulator.init(delta)
    simulator.run(state, 1)
    first, _ = simulator.run(state, 1)
    simulator.run(state, 1, donate=True)
    assert all(
        np.isfinite(leaf).all()
        for leaf in jax.tree.leaves((delta, state.delta, first.carry.clients))
    )
    with pytest.raises(RuntimeError, match="given away by run"):
        simulator.run(state, 1)


def test_a_round_that_fails_gives_donated_states_back():
    delta, backbone = make_trees()
    clients = make_clients()
    clients[5]["x"][:] = np.nan
    for how in ({}, {"data": "host"}):
        simulator = ffm.Simulator(
            private_beside_shared(),
            ffm.Population.from_clients(clients),
            backbone=backbone,
            cohort_size=2,
            seed=1,
            **how,
        )
        with pytest.raises(ffm.NonFiniteClient, match="client 5") as caught:
            simulator.run(simulator.init(delta), 50, donate=True)
        kept, _ = simulator.run(simulator.init(delta), caught.value.round)
        jax.tree.map(
            np.testing.assert_array_equal, caught.value.state.carry, kept.carry
        )


def test_spilled_states_are_not_shared_and_another_layout_shares_again(monkeypatch):
    _, whole = run(8, devices=1)
    monkeypatch.setattr(simulator_module, "SHARED_FROM", 0)
    simulator, spilled = run(
        8, devices=2, states="host"
    )  # a cohort of five does not divide
    assert not simulator.engine.shares_states
    assert "on the host" in repr(simulator)
    close(spilled.delta, whole.delta)
    simulator, _ = run(8, devices=2, block_size=1)
    simulator.lay_out(simulator.plan._replace(block_size=3, n_blocks=1))
    assert simulator.engine.shares_states
    state, _ = simulator.run(simulator.init(make_trees()[0]), 4)
    close(state.delta, whole.delta)


def test_states_spill_only_if_a_devices_part_does_not_fit(monkeypatch):
    monkeypatch.setattr(simulator_module, "SHARED_FROM", 0)
    simulator, _ = run(8, 1)
    bytes_of_states = simulator.shapes.bytes_of_states
    for devices, spills in ((1, True), (4, False)):
        simulator, _ = run(
            8,
            1,
            devices=devices,
            block_size=1,
            memory=2 * bytes_of_states,
            data="device",
        )
        assert simulator.spills == spills
        assert simulator.engine.shares_states != spills


@pytest.mark.parametrize(("first", "then"), [(4, 1), (1, 4), (4, 2)])
def test_a_run_begins_where_one_on_other_devices_ended(first, then):
    """With states that are made from its weights, as a client adapts a finished model."""
    _, ended = run(devices=first, block_size=1)
    _, backbone = make_trees()
    simulator = ffm.Simulator(
        private_beside_shared(),
        ffm.Population.from_clients(make_clients()),
        backbone=backbone,
        cohort_size=4,
        devices=then,
        block_size=1,
    )
    ours, _ = simulator.run(simulator.init(ended.delta), 1)
    host = jax.tree.map(np.asarray, ended.delta)
    expected, _ = simulator.run(simulator.init(host), 1)
    jax.tree.map(np.testing.assert_array_equal, ours.delta, expected.delta)
