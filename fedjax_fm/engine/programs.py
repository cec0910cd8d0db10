"""Many rounds: fused on the device, or one at a time with the host between them.

`Programs` holds both for one layout, with the operands that stay: backbone and data.
"""

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm import trees
from fedjax_fm.engine import hosts
from fedjax_fm.engine.billing import Bill, of_limbs, total_bytes
from fedjax_fm.engine.compiled import bytes_of_run
from fedjax_fm.engine.data import DeviceData, read_cohort
from fedjax_fm.engine.dealt import DealtPopulation
from fedjax_fm.engine.dealt_rows import Part, joined, part_of_cohort
from fedjax_fm.engine.devices import over_model, shared_by_cores
from fedjax_fm.engine.faults import Fault, is_good, no_fault
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.parts import Cohort, Engine
from fedjax_fm.engine.round import round_step
from fedjax_fm.engine.state import (
    HostStore,
    RoundState,
    is_spilled,
    with_first_states,
)
from fedjax_fm.engine.target import Target
from fedjax_fm.kernels.dispatch import compiled_for
from fedjax_fm.population.population import Population
from fedjax_fm.types import Sampler, Tree

# Rounds per dispatch: the length of the metrics buffer, so that any number of rounds
# reuses one program.
ROUNDS_PER_DISPATCH = 128
LOWERING = {"gpu": "cuda"}  # JAX's name of a platform, where it is another for lowering


# Fused


def fused(
    engine: Engine,
    sampler: Sampler,
    state: RoundState,
    backbone: Tree,
    data: DeviceData,
    n_rounds: jax.Array,
    key: jax.Array,
) -> tuple[RoundState, Any, jax.Array, jax.Array]:
    """Up to `n_rounds` rounds as one loop; stops before one that goes wrong.

    Args:
      engine, sampler: of the run.
      state: before the first of them.
      backbone: the frozen parameters.
      data: of the whole population.
      n_rounds: i32[], traced, at most ROUNDS_PER_DISPATCH.
      key: of the run.

    Returns:
      (state, metrics [ROUNDS_PER_DISPATCH, ...], rounds done i32[], fault i32[]).
    """

    @jax.jit  # its trace is used twice: for the shapes of the metrics and in the loop
    def one_round(state: RoundState):
        round_key = jax.random.fold_in(key, state.round)
        cohort_key = derive(round_key, Purpose.COHORT)
        with jax.named_scope("deal"):
            ids, n_active, sampler_state = sampler.draw(state.sampler, cohort_key)
        cohort = Cohort(ids=ids, n_active=n_active, data_places=ids, state_places=ids)
        after, metrics, fault = round_step(
            engine, backbone, data, state=state, cohort=cohort, key=round_key
        )
        return after._replace(sampler=sampler_state), metrics, fault

    def body(carry):
        i, state, buffer, _ = carry
        after, metrics, fault = one_round(state)
        good = is_good(fault)

        def last_good(new, old):
            return jnp.where(good, new, old)

        # The sampler stays with the rest at the last good round.
        drawn = jax.tree.map(last_good, after.sampler, state.sampler)
        buffer = jax.tree.map(lambda b, m: b.at[i].set(m), buffer, metrics)
        return i + good, after._replace(sampler=drawn), buffer, fault

    def goes_on(carry):
        i, _, _, fault = carry
        return (i < n_rounds) & is_good(fault)

    def empty(metric):
        return jnp.zeros((ROUNDS_PER_DISPATCH, *metric.shape), metric.dtype)

    buffer = jax.tree.map(empty, jax.eval_shape(one_round, state)[1])
    first = (jnp.int32(0), state, buffer, no_fault())
    done, state, buffer, fault = jax.lax.while_loop(goes_on, body, first)
    return state, buffer, done, fault


# One at a time


class Draw(NamedTuple):
    """A round's cohort on the host."""

    ids: np.ndarray  # i32[C]
    n_active: int
    sampler: Any  # state after the draw
    # of the cohort: on the devices, or this host's part; None: the population is there
    data: DeviceData | Part | None


class Prefetch:
    """Draws rounds one ahead, in a thread.

    A draw depends on the sampler's state and the round's number only, never on what was
    learned.

    Args:
      draw: `(round, sampler_state) -> Draw`.
      first: the first round to be drawn.
      last: the round after the last one.
      sampler: the sampler's state before the first.
    """

    def __init__(
        self, draw: Callable[[int, Any], Draw], first: int, last: int, sampler: Any
    ):
        self._draw, self._last = draw, last
        self._pool = ThreadPoolExecutor(1)
        self._coming: Future = self._pool.submit(draw, first, sampler)
        self._next = first

    def take(self) -> Draw:
        """The next round's; starts on the one after it."""
        drawn: Draw = self._coming.result()
        self._next += 1
        if self._next < self._last:
            self._coming = self._pool.submit(self._draw, self._next, drawn.sampler)
        return drawn

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class HostLoop:
    """Rounds one at a time: for streamed examples, spilled states, or `pmap`.

    Args:
      engine, sampler: of the run.
      population: the clients' data.
      data: all of it on the device, or None to stream every cohort.
      sharding: where what is streamed goes.
      options: of XLA.
    """

    def __init__(
        self,
        engine: Engine,
        sampler: Sampler,
        population: Population | DealtPopulation,
        data: DeviceData | None,
        sharding: NamedSharding,
        options: Mapping[str, Any],
    ):
        self.population, self.data = population, data
        self._sharding = sharding
        self._draw = jax.jit(sampler.draw)
        step = functools.partial(_step, engine)
        # pmap dispatches by itself; what lies around it runs operation by operation.
        compiled = jax.jit(step, donate_argnums=0, compiler_options=dict(options))
        self.step = step if engine.parallel == "pmap" else compiled

    def with_data(self, population: Any, data: DeviceData | None) -> "HostLoop":
        """The same for other data, with what is compiled."""
        other = copy.copy(self)
        other.population, other.data = population, data
        return other

    def _drawn(self, key: jax.Array, round_index: int, sampler_state: Any) -> Draw:
        round_key = jax.random.fold_in(key, round_index)
        cohort_key = derive(round_key, Purpose.COHORT)
        drawn, n_active, after = self._draw(sampler_state, cohort_key)
        ids, n_active = np.asarray(drawn), int(n_active)
        data = None if self.data is not None else self._streamed(ids, n_active)
        return Draw(ids=ids, n_active=n_active, sampler=after, data=data)

    def _streamed(self, ids: np.ndarray, n_active: int) -> DeviceData | Part:
        """The cohort's examples; clients past `n_active` have none: nothing is read."""
        wanted = ids[: min(n_active, len(ids))]
        known = (wanted >= 0) & (wanted < self.population.n_clients)
        wanted = wanted[known]  # the round refuses others
        if isinstance(self.population, DealtPopulation):
            part = part_of_cohort(self.population, wanted)
            return part._replace(offsets=_for_places(part.offsets, len(ids)))
        read = read_cohort(self.population, wanted)
        read = read._replace(offsets=_for_places(read.offsets, len(ids)))
        if hosts.are_several():
            return hosts.on_all(read, self._sharding)
        return jax.device_put(read, self._sharding)

    def run(
        self,
        state: RoundState,
        backbone: Tree,
        rounds: int,
        key: jax.Array,
        first_rows: Any,
    ) -> tuple[RoundState, list[Any], int]:
        """Up to `rounds` rounds; uses `state` up.

        Whether a round went wrong is looked at when the next one is on its way, which
        then changes nothing: the device does not wait for the host. (Rows of a spilled
        store are waited for in any case.)

        Returns:
          (state, metrics of each round, fault).
        """
        found: list[Any] = []
        if rounds == 0:  # nothing is drawn for nothing
            return state, found, int(Fault.NONE)
        first = int(state.round)
        # Of the round before; where the others come from, or it would compile again.
        fault: Any = jax.device_put(no_fault(), self._sharding)
        sampler = state.sampler  # before that round
        draw = functools.partial(self._drawn, key)
        with Prefetch(draw, first, first + rounds, state.sampler) as coming:
            for index in range(first, first + rounds):
                drawn = coming.take()
                round_key = jax.random.fold_in(key, index)
                # The sampler's state is being read by the next draw, so a round may
                # not take its memory.
                given = state._replace(sampler=())
                after, metrics, after_fault = self._one(
                    given,
                    backbone,
                    drawn=drawn,
                    key=round_key,
                    first_rows=first_rows,
                    fault=fault,
                )
                if int(fault) != Fault.NONE:
                    return after._replace(sampler=sampler), found[:-1], int(fault)
                sampler, fault = state.sampler, after_fault
                state = after._replace(sampler=drawn.sampler)
                found.append(metrics)
        if int(fault) != Fault.NONE:
            return state._replace(sampler=sampler), found[:-1], int(fault)
        return state, found, int(Fault.NONE)

    def _one(
        self,
        state: RoundState,
        backbone: Tree,
        *,
        drawn: Draw,
        key: Any,
        first_rows: Any,
        fault: Any,
    ):
        """One round; the rows of a spilled store travel there and back."""
        slots = np.arange(len(drawn.ids), dtype=np.int32)
        is_streamed, spilled = drawn.data is not None, is_spilled(state)
        data: Any = drawn.data if is_streamed else self.data
        if isinstance(data, Part):
            # Not by the thread that draws: hosts must begin programs in one order.
            data = joined(data, self._sharding)
        cohort = Cohort(
            ids=drawn.ids,
            n_active=np.int32(drawn.n_active),
            data_places=slots if is_streamed else drawn.ids,
            state_places=slots if spilled else drawn.ids,
            fault=fault,
        )
        if not spilled:
            return self.step(state, backbone, data, cohort, key)
        store: HostStore = state.clients
        inside = np.clip(drawn.ids, 0, len(store.touched) - 1)
        (clients, uplinks), touched = store.gather(inside)
        rows = state._replace(clients=clients, uplinks=uplinks)
        fresh = FirstStates(touched, store.first_delta, first_rows)
        after, metrics, fault = self.step(rows, backbone, data, cohort, key, fresh)
        if int(fault) == Fault.NONE:
            n = min(drawn.n_active, len(drawn.ids))
            store.scatter(drawn.ids[:n], (after.clients, after.uplinks))
        return after._replace(clients=store, uplinks=()), metrics, fault


def _for_places(offsets: np.ndarray, n: int) -> np.ndarray:
    """i32[n + 1]: the offsets, and clients without examples behind them."""
    return np.pad(offsets, (0, n + 1 - len(offsets)), mode="edge")


class FirstStates(NamedTuple):
    """What makes the states of a cohort's clients that are new."""

    touched: Any  # bool[C], who was here before
    first_delta: Tree
    first_rows: Any  # (delta, id) -> row


def _step(
    engine: Engine,
    state: RoundState,
    backbone: Tree,
    data: DeviceData,
    cohort: Cohort,
    key: jax.Array,
    fresh: FirstStates | None = None,
):
    """One round; spilled states of clients that are new are made first."""
    if fresh is not None:
        make = functools.partial(fresh.first_rows, fresh.first_delta)
        rows = (state.clients, state.uplinks)
        clients, uplinks = with_first_states(rows, fresh.touched, cohort.ids, make)
        state = state._replace(clients=clients, uplinks=uplinks)
    return round_step(engine, backbone, data, state=state, cohort=cohort, key=key)


# Both


class Ready(NamedTuple):
    """Rounds that are compiled for operands of these shapes.

    Attributes:
      shapes: of the operands of `fused`: state, backbone, data, rounds, key.
      compiled: the executable, a `jax.stages.Compiled`.
      seconds: that tracing, lowering and compiling took.
    """

    shapes: Any
    compiled: Any
    seconds: float


class Programs:
    """Runs rounds: fused where all is on the device, else with the host between them.

    Args:
      engine, sampler: of the run.
      population: the clients' data.
      backbone: the frozen parameters, moved to the devices.
      data: the whole population, or None to stream every cohort.
      target: the devices' machines. Where they are not here, backbone and data are
        known by shape and place alone, and rounds can be compiled but not run.
      options: of XLA, for all rounds.
    """

    def __init__(
        self,
        engine: Engine,
        sampler: Sampler,
        population: Population | DealtPopulation,
        backbone: Tree,
        data: DeviceData | Part | None,
        target: Target,
        options: Mapping[str, Any],
    ):
        self.engine, self.sampler, self.population = engine, sampler, population
        self.target, self.options = target, options
        self.everywhere = NamedSharding(engine.mesh, P())
        sharding = over_model(backbone, engine.mesh)
        self.backbone = self.on_devices(backbone, sharding)
        self.data = self.on_devices(data, self.everywhere)
        # Only the carry is donated: what `run` hands in is a copy, or was given to it.
        # Where things lie is said for what comes out, too: XLA would leave the server's
        # state split over the axis `model`, which the next dispatch is not compiled for.
        places = self._of_state(self.everywhere, engine.state_sharding)
        self.fused = jax.jit(
            functools.partial(fused, engine, sampler),
            donate_argnums=0,
            out_shardings=(places, *[self.everywhere] * 3),
            compiler_options=dict(options),
        )
        self.ready: Ready | None = None
        self.loop = HostLoop(
            engine,
            sampler,
            population,
            data=self.data,
            sharding=self.everywhere,
            options=options,
        )

    def on_devices(self, tree: Any, sharding: Any) -> Any:
        """The tree where it belongs; its shapes and places where that is not here.

        Args:
          tree: arrays, which may lie on other devices, or shapes; or the part of a
            dealt population that is here.
          sharding: one for all leaves, or a tree of them.
        """
        if isinstance(tree, Part):
            return joined(tree, sharding)
        if not self.target.is_here:
            return _at(tree, sharding)
        if hosts.are_several():
            return hosts.on_all(tree, sharding)
        if self.target.platform == "cpu":
            tree = shared_by_cores(tree)
        return jax.device_put(tree, sharding)

    def of(self, engine: Engine) -> "Programs":
        """The same for another engine of the same layout; nothing is moved."""
        return Programs(
            engine,
            self.sampler,
            self.population,
            backbone=self.backbone,
            data=self.data,
            target=self.target,
            options=self.options,
        )

    def with_data(
        self, engine: Engine, population: Any, data: DeviceData | Part | None
    ) -> "Programs":
        """The same for other data; what is compiled is kept where the engine is the same."""
        other = copy.copy(self if engine == self.engine else self.of(engine))
        other.population = population
        other.data = self.on_devices(data, self.everywhere)
        other.loop = other.loop.with_data(population, other.data)
        return other

    def compile(self, state: RoundState, key: jax.Array) -> Ready:
        """Compiles the rounds, once; `run` uses what is compiled.

        Args:
          state: before the first round, by shape.
          key: of a run.

        Raises:
          jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, the compiler says that the
            rounds do not fit the devices.
        """
        operands = self._operands(state, key)
        shapes = trees.shapes(operands)
        if self.ready is not None and self.ready.shapes == shapes:
            return self.ready
        begin = time.perf_counter()
        lowered = self.lower(state, key)
        compiled = lowered.compile()
        seconds = time.perf_counter() - begin
        self.ready = Ready(shapes=shapes, compiled=compiled, seconds=seconds)
        return self.ready

    def _operands(self, state: RoundState, key: jax.Array) -> tuple:
        """The operands of `fused`, by shape and place."""
        count = jax.ShapeDtypeStruct((), jnp.int32)
        rest = _at((count, key), self.everywhere)
        return (self.places(state), self.backbone, self.data, *rest)

    def lower(self, state: RoundState, key: jax.Array) -> Any:
        """The rounds for the target, whose platform may be another than JAX's default.

        Args:
          state: before the first round, by shape.
          key: of a run.

        Returns:
          A `jax.stages.Lowered`.
        """
        operands = self._operands(state, key)
        platform = self.target.platform
        with self._on_platform():
            traced = self.fused.trace(*operands)
            name = LOWERING.get(platform, platform)
            return traced.lower(lowering_platforms=(name,))

    def _on_platform(self) -> contextlib.AbstractContextManager:
        """What is traced is for the target's platform, also where JAX has another."""
        platform = self.target.platform
        is_default = platform == jax.default_backend()
        return contextlib.nullcontext() if is_default else compiled_for(platform)

    def bytes_needed(self, state: RoundState, key: jax.Array) -> float | None:
        """What the rounds need on a device while they run; compiles them, once.

        Args:
          state: before the first round, by shape.
          key: of a run.

        Returns:
          Bytes; infinity where the compiler says that they do not fit, None where it
          does not say.
        """
        try:
            ready = self.compile(state, key)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                return float("inf")
            raise
        found = ready.compiled.memory_analysis()
        return None if found is None else float(bytes_of_run(found))

    def _program_for(self, operands: tuple) -> Callable:
        """The rounds as they were compiled to be measured, or as jit compiles them."""
        ready = self.ready
        if ready is None or trees.shapes(operands) != ready.shapes:
            return self.fused
        return ready.compiled

    def _of_state(self, rest: Any, clients: Any) -> Any:
        """A state's form with one thing for clients' states and one for all else."""
        fields: dict[str, Any] = dict.fromkeys(RoundState._fields, rest)
        return RoundState(**fields | {"clients": clients, "uplinks": clients})

    def places(self, state: RoundState) -> RoundState:
        """The state's shapes with the places that `placed` gives it.

        Args:
          state: shapes.
        """
        rest = _at(state._replace(clients=(), uplinks=()), self.everywhere)
        stores = _at((state.clients, state.uplinks), self.engine.state_sharding)
        return rest._replace(clients=stores[0], uplinks=stores[1])

    def placed(self, state: RoundState) -> RoundState:
        """The state on all devices.

        Clients' states lie where the engine keeps them; a spilled store stays where it is.
        """
        stores = (state.clients, state.uplinks)
        if not is_spilled(state):
            stores = jax.device_put(stores, self.engine.state_sharding)
        rest = state._replace(clients=(), uplinks=())
        clients, uplinks = stores
        placed = jax.device_put(rest, self.everywhere)
        return placed._replace(clients=clients, uplinks=uplinks)

    def run(
        self,
        state: RoundState,
        rounds: int,
        key: jax.Array,
        first_rows: Any,
        donate: bool = False,
    ) -> tuple[RoundState, list[tuple[Any, int]], int]:
        """Up to `rounds` rounds, none after one that goes wrong.

        Args:
          state: before the first of them.
          rounds: how many.
          key: of the run.
          first_rows: makes the states of clients that are new, see `Shapes`.
          donate: lets the rounds take over the clients' states, which are used up. Else
            they work on a copy, as they do in any case for the rest of the state, which
            may still be the caller's.

        Returns:
          (state, [(metrics with a leading axis, rounds of it that count)], fault).
        """
        with self._on_platform():
            return self._run(state, rounds, key, first_rows, donate)

    def _run(
        self,
        state: RoundState,
        rounds: int,
        key: jax.Array,
        first_rows: Any,
        donate: bool,
    ) -> tuple[RoundState, list[tuple[Any, int]], int]:
        """`run`, traced for the target."""
        state = self._copied(self.placed(state), donate)
        is_pmap = self.engine.parallel == "pmap"
        if is_spilled(state) or self.data is None or is_pmap:
            return self._run_on_host(state, rounds, key, first_rows)
        buffers: list[tuple[Any, int]] = []
        done, fault = 0, int(Fault.NONE)
        while done < rounds and fault == Fault.NONE:
            n = jnp.int32(min(rounds - done, ROUNDS_PER_DISPATCH))
            operands = (state, self.backbone, self.data, n, key)
            state, buffer, completed, found = self._program_for(operands)(*operands)
            buffers.append((buffer, int(completed)))
            done, fault = done + int(completed), int(found)
        return state, buffers, fault

    def _copied(self, state: RoundState, donate: bool) -> RoundState:
        """The state in memory that the rounds may take over."""
        rest = state._replace(clients=(), uplinks=())
        stores = (state.clients, state.uplinks)
        if not donate and not is_spilled(state):
            stores = jax.tree.map(jnp.copy, stores)
        clients, uplinks = stores
        copied = jax.tree.map(_copy, rest)
        return copied._replace(clients=clients, uplinks=uplinks)

    def _run_on_host(
        self, state: RoundState, rounds: int, key: jax.Array, first_rows: Any
    ) -> tuple[RoundState, list[tuple[Any, int]], int]:
        """`run` with the host between the rounds."""
        state, found, fault = self.loop.run(
            state, self.backbone, rounds=rounds, key=key, first_rows=first_rows
        )
        if not found:
            return state, [], fault

        def stacked(*rows):
            return np.stack([np.asarray(x) for x in rows])

        return state, [(jax.tree.map(stacked, *found), len(found))], fault

    def who_failed(
        self, state: RoundState, fault: int, key: jax.Array, first_rows: Any
    ) -> int:
        """The client that made the round after `state` go wrong.

        Rounds may search the sum of the uploads for NaN, which does not tell whose it
        was: here the round is done once more and every upload is searched.

        Args:
          state: after the last good round.
          fault: of the next one.
          key: of the run.
          first_rows: as for `run`.

        Returns:
          A client's id or a `Fault`; SUM if no upload is to blame, but their sum.
        """
        of_a_draw = (Fault.COHORT_OVERFLOW, Fault.UNKNOWN_CLIENT)
        searches_sums = any(bound.sum_shows_nan for bound in self.engine.exchanges)
        if fault in of_a_draw or not searches_sums:
            return fault
        engine = self.engine._replace(searches_each=True)
        _, _, found = self.of(engine).run(state, 1, key, first_rows)
        return fault if found == Fault.NONE else found


def _at(tree: Tree, sharding: Any) -> Tree:
    """The tree by shapes and places.

    Args:
      tree: arrays or shapes.
      sharding: one for all leaves, or a tree of them.
    """

    def one(leaf, place):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    places = jax.tree.broadcast(sharding, tree)
    return jax.tree.map(one, trees.shapes(tree), places)


def _copy(leaf: Any) -> Any:
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf


# Metrics


def on_host(buffer: Any, completed: int, bills: list[Bill]) -> dict[str, np.ndarray]:
    """What `Simulator.run` returns, from what rounds count on the device.

    Args:
      buffer: sums and counts, leaves [rounds, ...].
      completed: rounds of it that count.
      bills: one an exchange.

    Returns:
      {name: array[completed]}.
    """
    buffer = jax.tree.map(lambda x: np.asarray(x)[:completed], buffer)
    counts, ratios = buffer["counts"], buffer["ratios"]
    metrics = {name: _ratio(total, count) for name, (total, count) in ratios.items()}
    metrics["examples"] = counts["examples"].astype(np.int64)
    metrics["clients"] = counts["clients"].astype(np.int64)
    metrics["examples_processed"] = of_limbs(counts["processed"])
    if "lost" in counts:  # clients can drop out
        metrics["clients_lost"] = counts["lost"].astype(np.int64)
        metrics["examples_lost"] = of_limbs(counts["processed_lost"])
    return metrics | total_bytes(bills, counts)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Of a round without a client a mean is unknown, not zero."""
    divisor = np.where(count > 0, count, 1)
    return np.where(count > 0, total / divisor, np.nan)


def concatenated(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Metrics of several dispatches in a row."""
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
