"""Whole experiments side by side.

`vmap` of many rounds over seeds and hyper-parameters, one backbone for all.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.engine.devices import compiler_options
from fedjax_fm.engine.faults import Fault
from fedjax_fm.engine.guarantee import check_rounds, check_sampling, with_epsilon
from fedjax_fm.engine.parts import Engine
from fedjax_fm.engine.programs import ROUNDS_PER_DISPATCH, fused, on_host
from fedjax_fm.engine.shapes import first_state, shapes_for
from fedjax_fm.engine.simulator import Simulator
from fedjax_fm.engine.state import RoundState, SimulationState
from fedjax_fm.types import Algorithm, Tree


@dataclass(frozen=True)
class Sweep:
    """What every lane found; lane s has seeds[s] and hyper[name][s].

    Attributes:
      seeds: i64[S].
      hyper: {name: f64[S]}.
      delta: leaves [S, ...], after the last good round.
      metrics: {name: [S, rounds]}, NaN in rounds that a lane did not reach.
      rounds: i64[S], rounds done; fewer than asked for where a client was not finite,
        as at too large a rate.
      carry: everything that passes from round to round, leaves [S, ...].
      keys: of the lanes, key[S].
      algorithm: of the sweep's simulator.
    """

    seeds: np.ndarray
    hyper: dict[str, np.ndarray]
    delta: Tree
    metrics: dict[str, np.ndarray]
    rounds: np.ndarray
    carry: RoundState
    keys: jax.Array
    algorithm: Algorithm

    def state(self, lane: int) -> SimulationState:
        """A lane's state, to ask the simulator for its models.

        Args:
          lane: s, from 0 to S - 1.

        Returns:
          What `simulator.model(state, client)` and `evaluate_clients` take.

        Raises:
          ValueError: no such lane.
        """
        checks.whole("lane", lane, least=0, most=len(self.seeds) - 1)

        def of_lane(leaf: Any) -> Any:
            return leaf[lane]

        carry = jax.tree.map(of_lane, self.carry)
        return SimulationState(
            carry=carry, key=self.keys[lane], algorithm=self.algorithm
        )


class _Grid(NamedTuple):
    """Every combination of hyper-parameters and seeds, a column each."""

    hyper: dict[str, np.ndarray]  # [S]
    seeds: np.ndarray  # [S]


def sweep(
    simulator: Simulator,
    delta: Tree,
    rounds: int,
    *,
    seeds: Sequence[int] = (0,),
    hyper: Mapping[str, Sequence[float]] | None = None,
    algorithm: Callable[..., Algorithm] | None = None,
) -> Sweep:
    """Runs every combination of hyper-parameters and seeds as one program.

    Memory: server state and clients' states once per lane, data and backbone once.

    Private methods are held to their accounting as in `Simulator.run`; `epsilon` is
    that of one lane. Releasing several lanes, or choosing among them by data, spends the
    sum of all.

    Args:
      simulator: gives everything but seed and, with `hyper`, algorithm; its data and
        states must be on the device.
      delta: the trainable tree.
      rounds: how many, of every lane.
      seeds: in the place of the simulator's.
      hyper: {name: values}; `algorithm(name=value, ...)` makes the algorithm from
        traced f32[] values, which optax takes where it takes floats.
      algorithm: makes one; given together with `hyper`.

    Returns:
      Metrics and deltas of all lanes.

    Raises:
      ValueError: `hyper` without `algorithm`; no seed, value or round; data or states
        that are not on the device.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
      >>> def method(lr):
      ...     return ffm.fedavg(task, optax.sgd(lr), epochs=1, batch_size=2)
      >>> clients = [{"x": np.full(2, float(k))} for k in range(4)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = Simulator(method(0.1), population, cohort_size=4)
      >>> grid = {"lr": [0.01, 0.1]}
      >>> found = sweep(simulator, jnp.float32(0), 3, seeds=range(5), hyper=grid, algorithm=method)
      >>> found.metrics["loss"].shape
      (10, 3)
    """
    if (hyper is None) != (algorithm is None):
        raise ValueError(
            "give `hyper` and `algorithm` together: values without a use, or a use "
            "without values"
        )
    grids = list((hyper or {}).values())
    has_empty = any(not len(values) for values in grids)
    if rounds < 1 or not len(seeds) or has_empty:
        raise ValueError(
            "expected rounds >= 1, a seed and a value of each name, got "
            f"{rounds}, {seeds}, {hyper}"
        )
    template = simulator.init(delta)
    if simulator.streams or simulator.engine.parallel == "pmap" or simulator.spills:
        raise ValueError(
            "a sweep needs data and states on the device and parallel='shard_map'"
        )
    grid = _grid_of(hyper or {}, seeds)
    lanes = _algorithms(simulator, grid, algorithm)
    for lane in lanes:
        check_sampling(lane, simulator.sampler, simulator.setting)
        check_rounds(lane.privacy, 0, rounds)
    keys = jax.vmap(jax.random.key)(jnp.asarray(grid.seeds, jnp.uint32))
    how: dict[str, Any] = {"grid": grid, "keys": keys, "algorithm": algorithm}
    carry, parts, done = _run(simulator, delta, rounds, **how)
    metrics = {
        name: np.concatenate([part[name] for part in parts], axis=1)
        for name in parts[0]
    }
    return Sweep(
        seeds=grid.seeds,
        hyper={name: column.astype(float) for name, column in grid.hyper.items()},
        delta=jax.vmap(template.algorithm.delta)(carry.server),
        metrics=_with_epsilons(metrics, lanes),
        rounds=done,
        carry=carry,
        keys=keys,
        algorithm=simulator.algorithm,
    )


def _grid_of(hyper: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> _Grid:
    rows = itertools.product(*hyper.values(), seeds)
    *columns, seeds_column = zip(*rows, strict=True)
    named = zip(hyper, columns, strict=True)
    arrays = {name: np.array(column) for name, column in named}
    return _Grid(hyper=arrays, seeds=np.array(seeds_column))


def _algorithms(
    simulator: Simulator, grid: _Grid, algorithm: Callable[..., Algorithm] | None
) -> list[Algorithm]:
    """Each lane's, made from its own values, so that the host can ask what they promise."""
    if algorithm is None:
        return [simulator.algorithm] * len(grid.seeds)
    lanes = []
    for row in range(len(grid.seeds)):
        values = {name: jnp.float32(column[row]) for name, column in grid.hyper.items()}
        lanes.append(algorithm(**values))
    return lanes


def _run(
    simulator: Simulator,
    delta: Tree,
    rounds: int,
    *,
    grid: _Grid,
    keys: jax.Array,
    algorithm: Callable[..., Algorithm] | None,
) -> tuple[RoundState, list[dict[str, np.ndarray]], np.ndarray]:
    """(state with a leading axis S, metrics of each dispatch, rounds done i64[S])."""
    sampler, backbone, data = simulator.sampler, simulator.backbone, simulator.data

    def engine_of(values: dict[str, jax.Array]) -> Engine:
        engine = simulator.engine._replace(shares_states=False)
        if algorithm is None:
            return engine
        return engine._replace(algorithm=algorithm(**values))

    def begin(key: jax.Array, values: dict[str, jax.Array]) -> RoundState:
        engine = engine_of(values)
        shapes = shapes_for(engine, backbone, data=data, delta=delta, key=key)
        return first_state(engine, sampler, shapes, delta=delta, key=key, spills=False)

    def some_rounds(state, key, values, n_rounds, backbone, data):
        engine = engine_of(values)
        return fused(
            engine,
            sampler,
            state=state,
            backbone=backbone,
            data=data,
            n_rounds=n_rounds,
            key=key,
        )

    values = {name: jnp.asarray(x, jnp.float32) for name, x in grid.hyper.items()}
    begin_all = jax.jit(jax.vmap(begin))
    carry = begin_all(keys, values)
    lanes_of_rounds = jax.vmap(some_rounds, in_axes=(0, 0, 0, 0, None, None))
    run = jax.jit(
        lanes_of_rounds, compiler_options=compiler_options(simulator.target.platform)
    )
    n_lanes = len(grid.seeds)
    parts, done, alive = [], np.zeros(n_lanes, np.int64), np.ones(n_lanes, bool)
    for first in range(0, rounds, ROUNDS_PER_DISPATCH):
        n = min(rounds - first, ROUNDS_PER_DISPATCH)
        todo = jnp.asarray(np.where(alive, n, 0), jnp.int32)
        operands = (keys, values, todo, backbone, data)
        carry, buffer, completed, fault = run(carry, *operands)
        completed = np.asarray(completed)
        parts.append(_masked(simulator, buffer, completed, n))
        done = done + completed
        alive = alive & (np.asarray(fault) == Fault.NONE)
    return carry, parts, done


def _with_epsilons(
    metrics: dict[str, np.ndarray], lanes: list[Algorithm]
) -> dict[str, np.ndarray]:
    """The metrics with each lane's `epsilon`, if all lanes were accounted for.

    NaN in rounds that a lane did not reach.
    """
    privacies = [lane.privacy for lane in lanes]
    if not metrics or any(p is None or p.epsilon is None for p in privacies):
        return metrics
    reached = ~np.isnan(metrics["clients"])
    spent = [
        with_epsilon({"clients": row}, privacy, 0)["epsilon"]
        for row, privacy in zip(reached, privacies, strict=True)
    ]
    return {**metrics, "epsilon": np.where(reached, np.stack(spent), np.nan)}


def _masked(
    simulator: Simulator, buffer: Any, completed: np.ndarray, n: int
) -> dict[str, np.ndarray]:
    """{name: f64[S, n]}, NaN where a lane had stopped."""
    bills = simulator.messages.bills

    def of_lane(s):
        return on_host(jax.tree.map(lambda x: x[s], buffer), n, bills)

    lanes = [of_lane(s) for s in range(len(completed))]
    reached = np.arange(n) < completed[:, None]

    def masked(name):
        return np.where(reached, np.stack([lane[name] for lane in lanes]), np.nan)

    return {name: masked(name) for name in lanes[0]}
