"""What every federated method promises, one row a method; `rows/` holds them."""

import importlib
import pkgutil
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rows
from contract import Problem, Row, simulator

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.runs.checkpoint import Checkpoints
from fedjax_fm.types import Sampler

ROWS: dict[str, Row] = {}
for module in pkgutil.iter_modules(rows.__path__):
    ROWS |= importlib.import_module(f"rows.{module.name}").ROWS

ROUNDS = 2


class Case(NamedTuple):
    """A method that has run."""

    row: Row
    problem: Problem
    simulator: ffm.Simulator
    start: ffm.SimulationState
    state: ffm.SimulationState
    metrics: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=sorted(ROWS))
def method(request):
    """Some rounds, computed once a row."""
    row = ROWS[request.param]
    problem = row.make()
    one = simulator(problem)
    start = one.init(problem.delta)
    return Case(row, problem, one, start, *one.run(start, ROUNDS))


def run(problem, rounds=ROUNDS, **how):
    other = simulator(problem, **how)
    return other.run(other.init(problem.delta), rounds)


def close(row, a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=row.rtol, atol=row.atol),
        a,
        b,
    )


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, _plain(a), _plain(b))


def _plain(tree):
    def is_key(x):
        return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)

    return jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree
    )


def test_state_is_stable(method):
    difference = ffm.trees.difference(method.start.carry, method.state.carry)
    assert difference is None, difference
    assert np.isfinite(method.metrics["loss"]).all()


def test_one_compile(method):
    method.simulator.run(method.state, 1)
    method.simulator.run(method.state, 5)
    assert method.simulator.programs.fused._cache_size() == 1


def test_one_client_is_centralised_training(method):
    client = max(method.problem.clients, key=lambda c: len(next(iter(c.values()))))
    state, _ = run(method.problem, rounds=1, clients=[client], cohort_size=1)
    key = jax.random.fold_in(jax.random.key(5), 0)
    close(method.row, state.delta, method.row.centralised(method.problem, client, key))


def places(ids, capacity):
    """What the sampler below draws; places beyond the ids hold some that must not be read."""
    return jnp.array([*ids, *[10_000] * (capacity - len(ids))], jnp.int32), jnp.int32(
        len(ids)
    )


def fixed(ids, capacity):
    """These clients every round, in this order; they are its state, so that others need
    no other program.
    """

    def draw(state, key):
        return (*state, state)

    return Sampler(init=lambda: places(ids, capacity), draw=draw, capacity=capacity)


def test_padded_empty_and_permuted_clients_change_nothing(method):
    names = method.problem.clients[0]
    empty = {name: np.asarray(array)[:0] for name, array in names.items()}
    ids, more = [3, 0, 5], [*method.problem.clients, empty]
    how = {"clients": more, "cohort_size": 3}
    expected, seen = run(method.problem, sampler=fixed(ids, 3), **how)
    padded = simulator(method.problem, sampler=fixed(ids, 6), **how)
    start = padded.init(method.problem.delta)
    state, also = padded.run(start, ROUNDS)
    close(method.row, state.delta, expected.delta)
    np.testing.assert_array_equal(also["uplink_bytes"], seen["uplink_bytes"])
    permuted = places([len(more) - 1, 5, 3, 0], 6)  # one without examples among them
    if (
        method.problem.algorithm.sampler is not None
    ):  # it keeps the state of the one above in front of its own
        permuted = (permuted, *start.carry.sampler[1:])
    state, _ = padded.run(
        replace(start, carry=start.carry._replace(sampler=permuted)), ROUNDS
    )
    close(method.row, state.delta, expected.delta)


LAYOUTS = [
    {"devices": 2, "block_size": 2},
    {
        "devices": 4,
        "uplink": channels.identity(),
        "downlink": channels.identity(),
    },  # as good as no channels
]


@pytest.mark.parametrize(
    "layout",
    LAYOUTS,
    ids=["two devices, blocks of two", "four devices, identity channels"],
)
def test_blocks_devices_and_identity_channels_agree(method, layout):
    other, same = run(method.problem, **layout)
    close(method.row, other.delta, method.state.delta)
    close(method.row, other.carry.clients, method.state.carry.clients)
    np.testing.assert_array_equal(same["uplink_bytes"], method.metrics["uplink_bytes"])
    np.testing.assert_array_equal(
        same["downlink_bytes"], method.metrics["downlink_bytes"]
    )


def test_checkpoint_goes_on_bit_for_bit(method, tmp_path):
    onward, _ = method.simulator.run(method.state, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(method.state.round, method.state)
    checkpoints.close()
    again, _ = method.simulator.run(
        Checkpoints(tmp_path).restore(method.state.round, method.start), 1
    )
    equal(again.carry, onward.carry)


def test_there_is_a_model_to_evaluate_of_the_server_and_of_every_client(method):
    """`row.model` says by itself what it is."""
    one, state = method.simulator, method.state
    for client in (None, 0, 3):
        found = one.model(state, client)
        expected = method.row.model(method.problem, state, client)
        close(method.row, found, expected)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(_plain(found)))


def test_a_clients_state_is_that_of_its_row(method):
    for client in (0, 3):
        expected = jax.tree.map(lambda x, k=client: x[k], method.state.carry.clients)
        equal(method.simulator.client_state(method.state, client), expected)


def test_another_seed_and_other_data_cost_no_compile(method):
    one = method.simulator
    count = one.programs.fused._cache_size()
    one.run(one.init(method.problem.delta, seed=11), 1)
    turned = [
        jax.tree.map(lambda x: np.asarray(x)[::-1], client)
        for client in method.problem.clients
    ]
    other = one.with_population(ffm.Population.from_clients(turned))
    state, _ = other.run(other.init(method.problem.delta), 1)
    assert (
        one.programs.fused._cache_size() == other.programs.fused._cache_size() == count
    )
    fresh, _ = run(method.problem, rounds=1, clients=turned)
    equal(state.carry, fresh.carry)
