"""Whole experiments side by side.

`vmap` of many rounds over seeds and hyper-parameters, one backbone for all.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.engine.devices import compiler_options
from fedjax_fm.engine.drive import ROUNDS_PER_DISPATCH, fused
from fedjax_fm.engine.guarantee import check_rounds, check_sampling, with_epsilon
from fedjax_fm.engine.metrics import on_host
from fedjax_fm.engine.parts import NO_CLIENT, Engine, RoundState
from fedjax_fm.engine.simulator import Simulator
from fedjax_fm.engine.start import first_state, start_of
from fedjax_fm.types import Algorithm, Tree


@dataclass(frozen=True)
class Sweep:
    """What every lane found; lane s has seeds[s] and hyper[name][s].

    Attributes:
      delta: leaves [S, ...], after the last good round.
      metrics: {name: [S, rounds]}, NaN in rounds that a lane did not reach.
      rounds: i64[S], rounds done; fewer than asked for where a client was not finite,
        as at too large a rate.
    """

    seeds: np.ndarray
    hyper: dict[str, np.ndarray]
    delta: Tree
    metrics: dict[str, np.ndarray]
    rounds: np.ndarray


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

    Args:
      simulator: gives everything but seed and, with `hyper`, algorithm; its data and
        states must be on the device.
      hyper: {name: values}; `algorithm(name=value, ...)` makes the algorithm from
        traced f32[] values, which optax takes where it takes floats.

    Memory: server state and clients' states once per lane, data and backbone once.

    Private methods are held to their accounting as in `Simulator.run`; `epsilon` is
    that of one lane. Whoever releases, or chooses by data among, several lanes spends
    for all of them.

    Example: `sweep(simulator, delta, 50, seeds=range(5), hyper={"lr": [0.01, 0.1]},
    algorithm=lambda lr: fedavg(...))` has ten lanes.
    """
    if (hyper is None) != (algorithm is None):
        raise ValueError(
            "give `hyper` and `algorithm` together: values without a use, or a use without values"
        )
    if (
        rounds < 1
        or not len(seeds)
        or any(not len(values) for values in (hyper or {}).values())
    ):
        raise ValueError(
            f"expected rounds >= 1, a seed and a value of each name, got {rounds}, {seeds}, {hyper}"
        )
    template = simulator.init(delta)
    if simulator.streams or simulator.engine.parallel == "pmap" or simulator.spills:
        raise ValueError(
            "a sweep needs data and states on the device and parallel='shard_map'"
        )
    names = list(hyper or {})
    grid = (
        list(itertools.product(*(hyper[name] for name in names), seeds))
        if hyper
        else [(seed,) for seed in seeds]
    )
    columns = [np.array(column) for column in zip(*grid, strict=True)]
    values = {
        name: jnp.asarray(column, jnp.float32)
        for name, column in zip(names, columns, strict=False)
    }
    keys = jax.vmap(jax.random.key)(jnp.asarray(columns[-1], jnp.uint32))
    lanes = _algorithms(simulator, names, columns, algorithm)
    for lane in lanes:
        check_sampling(lane, simulator.sampler, simulator.setting)
        check_rounds(lane.privacy, 0, rounds)

    def engine_of(values: dict[str, jax.Array]) -> Engine:
        engine = simulator.engine._replace(shares_states=False)
        return (
            engine
            if algorithm is None
            else engine._replace(algorithm=algorithm(**values))
        )

    def begin(key: jax.Array, values: dict[str, jax.Array]) -> RoundState:
        engine = engine_of(values)
        start = start_of(engine, simulator.backbone, simulator.data, delta, key)
        return first_state(engine, simulator.sampler, start, delta, key, spills=False)

    def some_rounds(state, key, values, n_rounds, backbone, data):
        return fused(
            engine_of(values), simulator.sampler, state, backbone, data, n_rounds, key
        )

    carry = jax.jit(jax.vmap(begin))(keys, values)
    run = jax.jit(
        jax.vmap(some_rounds, in_axes=(0, 0, 0, 0, None, None)),
        compiler_options=compiler_options(),
    )
    found, done, alive = [], np.zeros(len(grid), np.int64), np.ones(len(grid), bool)
    for first in range(0, rounds, ROUNDS_PER_DISPATCH):
        n = min(rounds - first, ROUNDS_PER_DISPATCH)
        todo = jnp.asarray(np.where(alive, n, 0), jnp.int32)
        carry, buffer, completed, bad = run(
            carry, keys, values, todo, simulator.backbone, simulator.data
        )
        completed = np.asarray(completed)
        found.append(_masked(simulator, buffer, completed, n))
        done, alive = done + completed, alive & (np.asarray(bad) == NO_CLIENT)
    metrics = {
        name: np.concatenate([part[name] for part in found], axis=1)
        for name in found[0]
    }
    metrics = _with_epsilons(metrics, lanes)
    named = {
        name: column.astype(float) for name, column in zip(names, columns, strict=False)
    }
    return Sweep(
        columns[-1],
        named,
        jax.vmap(template.algorithm.delta)(carry.server),
        metrics,
        done,
    )


def _algorithms(
    simulator: Simulator,
    names: list[str],
    columns: list[np.ndarray],
    algorithm: Callable[..., Algorithm] | None,
) -> list[Algorithm]:
    """Each lane's, made from its own values, so that the host can ask what they promise."""
    if algorithm is None:
        return [simulator.algorithm] * len(columns[-1])
    rows = zip(*columns[: len(names)], strict=True)
    return [
        algorithm(**dict(zip(names, map(jnp.float32, row), strict=True)))
        for row in rows
    ]


def _with_epsilons(
    metrics: dict[str, np.ndarray], lanes: list[Algorithm]
) -> dict[str, np.ndarray]:
    """The metrics with each lane's `epsilon`, if all lanes were accounted for.

    NaN in rounds that a lane did not reach.
    """
    if not metrics or any(
        lane.privacy is None or lane.privacy.epsilon is None for lane in lanes
    ):
        return metrics
    reached = ~np.isnan(metrics["clients"])
    spent = [
        with_epsilon({"clients": row}, lane.privacy, 0)["epsilon"]
        for row, lane in zip(reached, lanes, strict=True)
    ]
    return {**metrics, "epsilon": np.where(reached, np.stack(spent), np.nan)}


def _masked(
    simulator: Simulator, buffer: Any, completed: np.ndarray, n: int
) -> dict[str, np.ndarray]:
    """{name: f64[S, n]}, NaN where a lane had stopped."""
    lanes = [
        on_host(jax.tree.map(lambda x, s=s: x[s], buffer), n, simulator.messages)
        for s in range(len(completed))
    ]
    reached = np.arange(n) < completed[:, None]
    return {
        name: np.where(reached, np.stack([lane[name] for lane in lanes]), np.nan)
        for name in lanes[0]
    }
