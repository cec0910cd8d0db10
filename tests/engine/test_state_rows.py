"""Rows of states that travel one by one: XLA for CPUs cannot, so an emulation does it here.

For TPUs and GPUs the same programs are compiled in tests/aot, never run.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from kept_states import close, private_beside_shared, rows
from mlp_problem import lossy, make_clients, make_trees
from ragged import ragged_all_to_all

import fedjax_fm as ffm
from fedjax_fm.engine import simulator as simulator_module
from fedjax_fm.engine import state_rows
from fedjax_fm.engine.devices import CLIENTS, client_mesh

D, HELD, BLOCKS, WIDTH = 4, 5, 2, 3


@pytest.fixture
def by_row(monkeypatch):
    """Rows travel on CPU, too."""

    def travel(engine):
        return engine.shares_states and engine.plan.n_devices > 1

    monkeypatch.setattr(simulator_module, "SHARED_FROM", 0)
    monkeypatch.setattr(state_rows, "travel", travel)
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)


def layout(model):
    """What the functions read of an engine."""
    mesh = client_mesh(D * model, model)
    plan = SimpleNamespace(n_devices=D)
    return SimpleNamespace(mesh=mesh, plan=plan, shares_states=True)


def stores_of(engine, rng):
    stores = {
        "matrix": rng.normal(size=(D * HELD, 2, 3)).astype(np.float32),
        "count": rng.integers(0, 99, size=D * HELD).astype(np.int32),
    }
    return stores, jax.device_put(stores, NamedSharding(engine.mesh, P(CLIENTS)))


@pytest.mark.parametrize("model", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_are_those_of_their_places(by_row, seed, model):
    rng, engine = np.random.default_rng(seed), layout(model)
    stores, shared = stores_of(engine, rng)
    places = rng.integers(0, D * HELD, size=(D, BLOCKS, WIDTH)).astype(np.int32)
    taken = jax.jit(functools.partial(state_rows.taken, engine))(shared, places)
    expected = jax.tree.map(lambda store: store[places], stores)
    jax.tree.map(np.testing.assert_array_equal, taken, expected)
    for leaf in jax.tree.leaves(taken):
        assert leaf.sharding.spec == P(CLIENTS)


@pytest.mark.parametrize("model", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_go_to_their_places_and_those_past_the_end_are_dropped(
    by_row, seed, model
):
    rng, engine = np.random.default_rng(seed), layout(model)
    stores, shared = stores_of(engine, rng)
    places = rng.permutation(D * BLOCKS * WIDTH).reshape(D, BLOCKS, WIDTH)
    places = np.where(places < D * HELD, places, np.iinfo(np.int32).max)
    assert (places >= D * HELD).any()
    rows = {
        "matrix": rng.normal(size=(*places.shape, 2, 3)).astype(np.float32),
        "count": rng.integers(0, 99, size=places.shape).astype(np.int32),
    }
    put = jax.jit(functools.partial(state_rows.put, engine))
    written = put(shared, places.astype(np.int32), rows)
    inside = places < D * HELD
    for name, store in stores.items():
        expected = store.copy()
        expected[places[inside]] = rows[name][inside]
        np.testing.assert_array_equal(written[name], expected)


def some_of_them():
    """As `private_beside_shared`, for clients of even numbers only."""
    method = private_beside_shared()
    (exchange,) = method.exchanges
    even = exchange._replace(selects=lambda message, client, key: client % 2 == 0)
    return method._replace(exchanges=(even,))


def simulate(method, n_clients, **how):
    delta, backbone = make_trees()
    sizes = [3 + k % 5 for k in range(n_clients)]
    simulator = ffm.Simulator(
        method(),
        ffm.Population.from_clients(make_clients(sizes=sizes)),
        backbone=backbone,
        cohort_size=5,
        uplink=lossy(),
        seed=2,
        **how,
    )
    return simulator, simulator.run(simulator.init(delta), 4)[0]


@pytest.mark.parametrize("method", [private_beside_shared, some_of_them])
@pytest.mark.parametrize(
    ("n_clients", "how"),
    [
        (11, {"devices": 4, "block_size": 1}),
        (8, {"devices": 2, "block_size": 2}),
        (8, {"devices": 4, "block_size": 2, "model_parallel": 2}),
        (8, {"devices": 4, "block_size": 1, "data": "host"}),
    ],
    ids=str,
)
def test_rounds_are_those_of_one_device(by_row, method, n_clients, how):
    _, whole = simulate(method, n_clients, devices=1)
    simulator, state = simulate(method, n_clients, **how)
    assert state_rows.travel(simulator.engine)
    close(state.delta, whole.delta)
    close(rows(state, n_clients), rows(whole, n_clients))
    if "data" not in how:  # else the host drives the rounds
        assert ffm.testing.compile_count(simulator) == 1


def test_a_round_that_goes_wrong_changes_no_row(by_row):
    delta, backbone = make_trees()
    clients = make_clients()
    clients[5]["x"][:] = np.nan
    simulator = ffm.Simulator(
        private_beside_shared(),
        ffm.Population.from_clients(clients),
        backbone=backbone,
        cohort_size=4,
        seed=1,
        devices=4,
    )
    with pytest.raises(ffm.NonFiniteClient, match="client 5") as caught:
        simulator.run(simulator.init(delta), 50)
    kept, _ = simulator.run(simulator.init(delta), caught.value.round)
    jax.tree.map(np.testing.assert_array_equal, caught.value.state.carry, kept.carry)


def test_what_a_receiver_does_not_expect_is_found():
    """The emulation is no weaker than the exchange that it stands for."""

    def wrong(x):
        me = jax.lax.axis_index(CLIENTS)
        one = jnp.full(2, 1, jnp.int32)
        offsets = jnp.zeros(2, jnp.int32)
        return ragged_all_to_all(
            x, x, offsets, one, offsets, one * (me == 0), axis_name=CLIENTS
        )

    mesh = client_mesh(2)
    lifted = jax.shard_map(
        wrong, mesh=mesh, in_specs=P(CLIENTS), out_specs=P(CLIENTS), check_vma=False
    )
    assert (jax.jit(lifted)(jnp.zeros(4)) == 77).any()
