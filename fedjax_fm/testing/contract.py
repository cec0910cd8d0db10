"""What every federated method promises, as functions to call on one's own."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import channels, trees
from fedjax_fm.engine.simulator import Simulator
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.population.population import Population
from fedjax_fm.runs.checkpoint import Checkpoints
from fedjax_fm.testing.handles import (
    cohort_state,
    compile_count,
    fixed_cohort,
    round_key,
)
from fedjax_fm.types import Algorithm, Tree

SEED, ROUNDS = 5, 2


class Problem(NamedTuple):
    """A method on a task so small that all its promises can be checked.

    Attributes:
      algorithm: the method.
      delta, backbone: where it starts, and what is frozen.
      clients: at least six, of different sizes.
      cohort_size: clients a round.
    """

    algorithm: Algorithm
    delta: Tree
    backbone: Tree
    clients: Sequence[dict[str, np.ndarray]]
    cohort_size: int


class Case(NamedTuple):
    """A method that has run.

    Attributes:
      problem: what has run.
      simulator: its, on one device.
      start, state: before and after the first rounds.
      metrics: of these rounds.
      rtol, atol: of comparisons up to the order of float sums.
    """

    problem: Problem
    simulator: Simulator
    start: SimulationState
    state: SimulationState
    metrics: dict[str, np.ndarray]
    rtol: float
    atol: float


def simulator_of(problem: Problem, **how: Any) -> Simulator:
    """The problem's simulator, on one device unless told otherwise.

    Args:
      problem: the method and its task.
      **how: arguments of `Simulator`, and `clients` in the place of the problem's.
    """
    how = {"cohort_size": problem.cohort_size, "seed": SEED, "devices": 1} | how
    clients = how.pop("clients", problem.clients)
    algorithm = how.pop("algorithm", problem.algorithm)
    backbone = how.pop("backbone", problem.backbone)
    population = Population.from_clients(clients)
    return Simulator(algorithm, population, backbone=backbone, **how)


def case_of(problem: Problem, *, rtol: float = 2e-5, atol: float = 2e-6) -> Case:
    """Runs the first rounds, which all promises look at.

    Args:
      problem: the method and its task.
      rtol, atol: of comparisons up to the order of float sums.
    """
    simulator = simulator_of(problem)
    start = simulator.init(problem.delta)
    state, metrics = simulator.run(start, ROUNDS)
    return Case(
        problem=problem,
        simulator=simulator,
        start=start,
        state=state,
        metrics=metrics,
        rtol=rtol,
        atol=atol,
    )


def check_algorithm(
    make: Callable[[], Problem],
    *,
    centralised: Callable[[Problem, dict, jax.Array], Tree] | None = None,
    rtol: float = 2e-5,
    atol: float = 2e-6,
) -> None:
    """Holds a method to what every method of this package promises.

    `PROMISES` names them: one program for any number of rounds, a server state of one
    form, padding that changes no bit, the same result on one device and on several,
    checkpoints that go on bit for bit, a model of the server and of every client.

    Args:
      make: the problem, the same at every call.
      centralised: `(problem, client, key) -> delta` after one round in which that client
        (id 0) is the whole population, by a plain loop without the engine; `key` is the
        round's. None skips that comparison.
      rtol, atol: of comparisons up to the order of float sums.

    Raises:
      AssertionError: names the promises that are not kept, with what was found.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> def make():
      ...     task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
      ...     return Problem(
      ...         algorithm=ffm.fedavg(task, optax.sgd(0.1), local_steps=2, batch_size=4),
      ...         delta=jnp.float32(0),
      ...         backbone=(),
      ...         clients=[{"x": np.ones(n) * n} for n in (3, 1, 4, 2, 5, 6)],
      ...         cohort_size=4,
      ...     )
      >>> check_algorithm(make)
    """
    case = case_of(make(), rtol=rtol, atol=atol)
    broken = {}
    for name, promise in PROMISES.items():
        try:
            promise(case)
        except AssertionError as error:
            broken[name] = error
    if centralised is not None:
        try:
            one_client_is_centralised(case, centralised)
        except AssertionError as error:
            broken["one client is centralised training"] = error
    if broken:
        lines = [f"{name}: {error}" for name, error in broken.items()]
        raise AssertionError("\n\n".join(["promises not kept:", *lines]))


# Promises


def state_is_stable(case: Case) -> None:
    """After rounds the state has the form it began with, and the loss is finite."""
    difference = trees.difference(case.start.carry, case.state.carry)
    assert difference is None, difference
    assert np.isfinite(case.metrics["loss"]).all(), case.metrics["loss"]


def rounds_compile_once(case: Case) -> None:
    """One program serves for any number of rounds."""
    case.simulator.run(case.state, 1)
    case.simulator.run(case.state, 5)
    assert compile_count(case.simulator) == 1, compile_count(case.simulator)


def padding_changes_nothing(case: Case) -> None:
    """Empty places, clients without examples and the cohort's order change no result."""
    problem, ids = case.problem, [3, 0, 5]
    first = problem.clients[0]
    empty = {name: np.asarray(array)[:0] for name, array in first.items()}
    how = {"clients": [*problem.clients, empty], "cohort_size": 3}
    expected, seen = _run(problem, sampler=fixed_cohort(ids), **how)
    padded = simulator_of(problem, sampler=fixed_cohort(ids, 6), **how)
    start = padded.init(problem.delta)
    state, also = padded.run(start, ROUNDS)
    _assert_close(case, state.delta, expected.delta)
    np.testing.assert_array_equal(also["uplink_bytes"], seen["uplink_bytes"])
    without_examples = len(problem.clients)
    permuted: Any = cohort_state([without_examples, 5, 3, 0], 6)
    if jax.tree.structure(permuted) != jax.tree.structure(start.carry.sampler):
        # the method keeps the state of the sampler above in front of its own
        permuted = (permuted, *start.carry.sampler[1:])
    carry = start.carry._replace(sampler=permuted)
    state, _ = padded.run(replace(start, carry=carry), ROUNDS)
    _assert_close(case, state.delta, expected.delta)


def blocks_agree(case: Case) -> None:
    """Two devices with blocks of two give what one device gives."""
    _layout_agrees(case, devices=2, block_size=2)


def devices_agree(case: Case) -> None:
    """Four devices and identity channels give what one device without channels gives."""
    identity = channels.identity()
    _layout_agrees(case, devices=4, uplink=identity, downlink=identity)


def checkpoints_go_on(case: Case) -> None:
    """From a checkpoint the run goes on bit for bit."""
    onward, _ = case.simulator.run(case.state, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = Checkpoints(folder)
        checkpoints.save(case.state.round, case.state)
        checkpoints.close()
        restored = Checkpoints(folder).restore(case.state.round, case.start)
    again, _ = case.simulator.run(restored, 1)
    assert_equal(again.carry, onward.carry)


def models_are_finite(case: Case) -> None:
    """There is a model to evaluate, of the server and of every client."""
    for client in (None, 0, 3):
        found = case.simulator.model(case.state, client)
        for leaf in jax.tree.leaves(_plain(found)):
            assert np.isfinite(leaf).all(), f"the model of client {client}"


def client_states_are_rows(case: Case) -> None:
    """`client_state` is the client's row of the store."""
    for client in (0, 3):
        expected = jax.tree.map(lambda x, k=client: x[k], case.state.carry.clients)
        assert_equal(case.simulator.client_state(case.state, client), expected)


def seeds_and_data_are_operands(case: Case) -> None:
    """Another seed and other data of the same shapes cost no compile."""
    problem, one = case.problem, case.simulator
    count = compile_count(one)
    one.run(one.init(problem.delta, seed=SEED + 6), 1)
    turned = [
        {name: np.asarray(array)[::-1] for name, array in client.items()}
        for client in problem.clients
    ]
    other = one.with_population(Population.from_clients(turned))
    state, _ = other.run(other.init(problem.delta), 1)
    counts = {count, compile_count(one), compile_count(other)}
    assert len(counts) == 1, counts
    fresh, _ = _run(problem, rounds=1, clients=turned)
    assert_equal(state.carry, fresh.carry)


PROMISES: dict[str, Callable[[Case], None]] = {
    "the state is stable": state_is_stable,
    "rounds compile once": rounds_compile_once,
    "padding changes nothing": padding_changes_nothing,
    "blocks agree": blocks_agree,
    "devices agree": devices_agree,
    "checkpoints go on": checkpoints_go_on,
    "models are finite": models_are_finite,
    "client states are rows": client_states_are_rows,
    "seeds and data are operands": seeds_and_data_are_operands,
}


def one_client_is_centralised(
    case: Case, centralised: Callable[[Problem, dict, jax.Array], Tree]
) -> None:
    """A round of one client is what a plain loop without the engine computes.

    Args:
      case: the method.
      centralised: see `check_algorithm`.
    """

    def n_examples(client):
        first, *_ = client.values()
        return len(first)

    client = max(case.problem.clients, key=n_examples)
    state, _ = _run(case.problem, rounds=1, clients=[client], cohort_size=1)
    expected = centralised(case.problem, client, round_key(SEED, 0))
    _assert_close(case, state.delta, expected)


# Comparisons


def assert_equal(a: Tree, b: Tree) -> None:
    """Refuses trees that differ in a bit; keys of jax.random are compared by their data.

    Args:
      a, b: trees of arrays.

    Raises:
      AssertionError: says where.
    """
    jax.tree.map(np.testing.assert_array_equal, _plain(a), _plain(b))


def _run(problem: Problem, rounds: int = ROUNDS, **how: Any):
    other = simulator_of(problem, **how)
    return other.run(other.init(problem.delta), rounds)


def _layout_agrees(case: Case, **layout: Any) -> None:
    other, same = _run(case.problem, **layout)
    _assert_close(case, other.delta, case.state.delta)
    _assert_close(case, other.carry.clients, case.state.carry.clients)
    for name in ("uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(same[name], case.metrics[name])


def _assert_close(case: Case, a: Tree, b: Tree) -> None:
    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=case.rtol, atol=case.atol)

    jax.tree.map(close, a, b)


def _plain(tree: Tree) -> Tree:
    def plain(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(plain, tree)
