"""Runs an algorithm over a population: layout, stores and bytes; metrics and errors on the host."""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm import trees
from fedjax_fm.channels.identity import identity
from fedjax_fm.engine.data import DeviceData
from fedjax_fm.engine.devices import client_mesh, memory_of, over_model
from fedjax_fm.engine.drive import ROUNDS_PER_DISPATCH, HostLoop, fused
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.message import unless_empty
from fedjax_fm.engine.messages import trace_messages
from fedjax_fm.engine.parts import NO_CLIENT, OUTSIDE, OVERFLOW, Engine, RoundState, of_digits
from fedjax_fm.engine.plan import Plan, make_plan
from fedjax_fm.engine.store import HostStore
from fedjax_fm.engine.summary import summarise
from fedjax_fm.population import samplers
from fedjax_fm.population.population import Population
from fedjax_fm.types import Algorithm, Behaviour, Channel, Sampler, Setting, Tree

Where = Literal["auto", "device", "host"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SimulationState:
    """The whole state of a run, a pytree."""

    rounds: RoundState
    algorithm: Algorithm = field(metadata={"static": True})

    @property
    def delta(self) -> Tree:
        """The server's trainable tree."""
        return self.algorithm.delta(self.rounds.server)

    @property
    def round(self) -> int:
        """Rounds done so far."""
        return int(self.rounds.round)


class RoundError(Exception):
    """A round that could not be finished; it took no effect.

    Attributes:
      round: which one; state, metrics: after the last good round.
    """

    def __init__(self, message: str, state: SimulationState, metrics: dict[str, np.ndarray]):
        self.round, self.state, self.metrics = state.round, state, metrics
        super().__init__(
            f"round {self.round}: {message} The state after the last good round is in the exception's `state`."
        )


class NonFiniteClient(RoundError, FloatingPointError):
    """A client sent NaN or infinity; `client` is the smallest id among those concerned."""

    def __init__(self, client: int, state: SimulationState, metrics: dict[str, np.ndarray]):
        self.client = client
        cure = "Look at that client's data, lower the learning rate or clip."
        super().__init__(f"client {client} produced NaN or infinity (loss or upload). {cure}", state, metrics)


class CohortOverflow(RoundError):
    """The sampler drew more clients than its capacity; leaving some out would break a privacy accountant."""


class UnknownClient(RoundError):
    """The sampler drew an id that no client of the population has."""


class Simulator:
    """Simulates `algorithm` over `population`; print it for a summary.

    Args:
      algorithm: for example `fedavg(...)`.
      population: the clients' data.
      backbone: frozen parameters, an operand of every round; () if there are none.
      cohort_size: clients a round.
      uplink, downlink: channels; None sends the arrays as they are.
      seed: names every random number of the run.
      devices: how many devices are used; default all (one, where the whole cohort is a single small block on CPU).
      block_size: clients that a device computes at once; default see `make_plan`, halved until the compiled rounds
        fit into `memory` (on CPU only if that is given).
      sampler: default uniform without replacement.
      behaviour: stragglers and drop-outs.
      model_parallel: devices over which the backbone is split (mesh axis `model`); the others carry clients.
      parallel: "shard_map", or "pmap" for one dispatch per exchange on older set-ups.
      data: "device" copies the population there once; "host" streams every cohort from (memory-mapped) host arrays.
      states: "device" keeps the states of all clients there; "host" spills them, and updates them in place: after
        `run`, the state that went in is used up.
      memory: bytes a device may use; default all. "auto" keeps data and states on the device while each takes at
        most a quarter of it.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        population: Population,
        *,
        backbone: Tree = (),
        cohort_size: int,
        uplink: Channel | None = None,
        downlink: Channel | None = None,
        seed: int = 0,
        devices: int | None = None,
        block_size: int | None = None,
        sampler: Sampler | None = None,
        behaviour: Behaviour | None = None,
        model_parallel: int = 1,
        parallel: Literal["shard_map", "pmap"] = "shard_map",
        data: Where = "auto",
        states: Where = "auto",
        memory: int | None = None,
    ):
        self.algorithm, self.population = algorithm, population
        self.sampler = sampler or samplers.uniform(population.n_clients, cohort_size)
        if population.n_examples == 0:
            raise ValueError(f"no client has an example: {population}")
        if parallel not in ("shard_map", "pmap") or (parallel == "pmap" and model_parallel > 1):
            raise ValueError(f"expected parallel 'shard_map', or 'pmap' with model_parallel=1, got {parallel!r}")
        for name, where in (("data", data), ("states", states)):
            if where not in get_args(Where):
                raise ValueError(f"expected {name} to be one of {', '.join(get_args(Where))}, got {where!r}")
        self._model_parallel, self._devices, self._block_size = model_parallel, devices, block_size
        self._n_devices = client_mesh(devices, model_parallel).size // model_parallel
        make_plan(self.sampler.capacity, self._n_devices, block_size)  # refuses impossible sizes at once
        self.memory, self._limited = memory or memory_of(jax.devices()[0]), memory is not None
        self._states = states
        self.streams = data == "host" or (data == "auto" and _nbytes(population) > self.memory // 4)
        self.setting = Setting(population.n_clients, cohort_size)
        self._make_engine = functools.partial(
            Engine, algorithm=algorithm, setting=self.setting, uplink=unless_empty(uplink or identity()),
            downlink=unless_empty(downlink or identity()), n_max=int(population.sizes.max()),
            behaviour=behaviour or Behaviour(), parallel=parallel,
        )  # fmt: skip
        self.key = jax.random.key(seed)
        self.backbone = backbone
        self.plan: Plan | None = None

    # Layout ------------------------------------------------------------------------------------------------------

    def lay_out(self, plan: Plan) -> None:
        """Places data and backbone for this plan; a resumed run does so with the plan of its first part, as that
        decides the order of float sums."""
        if self.plan == plan:
            return
        mesh = client_mesh(plan.n_devices * self._model_parallel, self._model_parallel)
        self.plan, self.engine = plan, self._make_engine(plan=plan, mesh=mesh)
        self._everywhere = NamedSharding(mesh, P())
        self.backbone = jax.device_put(self.backbone, over_model(self.backbone, mesh))
        self.data = None if self.streams else jax.device_put(_device_data(self.population), self._everywhere)
        # Only the carry is donated: `run` hands in its own copy.
        self._run = jax.jit(functools.partial(fused, self.engine, self.sampler), donate_argnums=0)
        self._loop = HostLoop(self.engine, self.sampler, self.population, self.data, self._everywhere)

    def init(self, delta: Tree) -> SimulationState:
        """The state before the first round, from the trainable tree."""
        for path, leaf in jax.tree.leaves_with_path(delta):
            if not bool(jnp.all(jnp.isfinite(leaf))):
                raise ValueError(f"delta holds NaN or infinity at {trees.path_of(path)}")
        self._start = delta
        if self.plan is None:
            lane = 3 * trees.nbytes(trees.shapes(delta))  # delta, upload and optimizer
            fixed = self._devices is not None or self._model_parallel > 1
            self.lay_out(make_plan(self.sampler.capacity, self._n_devices, self._block_size, lane, fixed))
            if self._block_size is None and (self._limited or jax.default_backend() != "cpu"):
                self._narrow_until_it_fits(delta)
        return SimulationState(self._placed(self.first_state(delta)), self.algorithm)

    def _narrow_until_it_fits(self, delta: Tree) -> None:
        """Halves the block while the compiled rounds need more than a device's memory; rounds that the host drives,
        whose shapes are not known before, stay as the rule has them."""
        state = jax.eval_shape(lambda: self.first_state(delta))
        while self.plan and self.plan.block_size > 1 and not (self.streams or self.spills):
            step = self._run.lower(state, self.backbone, self.data, jnp.int32(1), self.key).compile()
            found = step.memory_analysis()
            if found is None or found.argument_size_in_bytes + found.temp_size_in_bytes <= self.memory:
                return
            self.lay_out(make_plan(self.sampler.capacity, self.plan.n_devices, self.plan.block_size // 2))

    def first_state(self, delta: Tree) -> RoundState:
        """The state of round 0, before it is placed on devices; works under `jit` and `vmap`."""
        server = self.algorithm.init(delta, derive(self.key, Purpose.INIT), self.setting)
        self._messages(server)
        clients, uplinks = self._stores(delta)
        return RoundState(
            server=server,
            clients=clients,
            uplinks=uplinks,
            downlinks=tuple(self.engine.downlink.init(message) for message in self.messages.broadcasts),
            sampler=self.sampler.init(),
            round=jnp.int32(0),
        )

    def _messages(self, server: Any) -> None:
        shape = jax.eval_shape(lambda: self.algorithm.client_init(self._start, self.key))
        data = _device_data_shapes(self.population) if self.data is None else self.data
        self.messages = trace_messages(self.engine, self.backbone, data, server, shape, self.key)

    def _first_rows(self, start: Tree, client: jax.Array) -> tuple[Any, tuple]:
        """States of a client that never took part, from round 0's delta: (the algorithm's, per exchange the uplink's)."""
        mine = self.algorithm.client_init(start, derive(self.key, Purpose.CLIENT_INIT, client))
        return mine, tuple(self.engine.uplink.init(upload) for upload in self.messages.uploads)

    def _stores(self, delta: Tree) -> tuple[Any, tuple]:
        n = self.population.n_clients
        shapes = jax.eval_shape(self._first_rows, delta, jnp.int32(0))
        self.bytes_of_states = n * trees.nbytes(shapes)
        self.spills = self._states == "host" or (self._states == "auto" and self.bytes_of_states > self.memory // 4)
        if self.spills:
            return HostStore.empty(shapes, n, delta), ()
        make = jax.vmap(functools.partial(self._first_rows, delta))
        return make(jnp.arange(n)) if jax.tree.leaves(shapes) else shapes

    def _placed(self, state: RoundState) -> RoundState:
        """On all devices; a spilled store stays where it is."""
        if not isinstance(state.clients, HostStore):
            return jax.device_put(state, self._everywhere)
        return jax.device_put(state._replace(clients=()), self._everywhere)._replace(clients=state.clients)

    # Rounds ------------------------------------------------------------------------------------------------------

    def bytes_per_client(self, state: SimulationState) -> tuple[int, int]:
        """(uplink, downlink) bytes of one client in one round: the lengths of the packed buffers. At most, where an
        exchange takes some of the clients only or the data decide; the metrics of `run` are exact."""
        return self.messages.bytes_per_client

    def run(self, state: SimulationState, rounds: int) -> tuple[SimulationState, dict[str, np.ndarray]]:
        """Runs `rounds` rounds.

        Returns:
          (state, metrics): {name: array[rounds]} with at least `loss` (example-weighted, over all local steps),
          `examples`, `clients` (whose upload arrived), `uplink_bytes`, `downlink_bytes` (sums over the cohort).

        Raises:
          NonFiniteClient: a loss or an upload was not finite.
          CohortOverflow, UnknownClient: the sampler drew more clients than its capacity, or one that is not there.
          RuntimeError: the state's spilled store has gone on with another run.
        """
        if rounds < 0:
            raise ValueError(f"expected rounds >= 0, got rounds={rounds}")
        if self.plan is None:
            raise RuntimeError("call `init(delta)` first: the layout depends on the trainable tree")
        spilled = isinstance(state.rounds.clients, HostStore)
        if spilled and state.rounds.clients.rounds[0] != state.round:
            raise RuntimeError(
                f"this state is of round {state.round}, but its spilled store has gone on to round "
                f"{state.rounds.clients.rounds[0]}: states on the host are updated in place; go on from the newest state"
            )
        if spilled or self.streams or self.engine.parallel == "pmap":
            return self._run_on_host(state, rounds)
        carry = jax.tree.map(jnp.copy, self._placed(state.rounds))
        parts: list[dict[str, np.ndarray]] = []
        done, bad = 0, NO_CLIENT
        while done < rounds and bad == NO_CLIENT:
            n = min(rounds - done, ROUNDS_PER_DISPATCH)
            carry, buffer, completed, bad = self._run(carry, self.backbone, self.data, jnp.int32(n), self.key)
            parts.append(self.host_metrics(buffer, int(completed)))
            done, bad = done + int(completed), int(bad)
        return self._outcome(SimulationState(carry, self.algorithm), _concatenate(parts), bad)

    def _run_on_host(self, state: SimulationState, rounds: int) -> tuple[SimulationState, dict[str, np.ndarray]]:
        if not rounds:
            return state, {}
        placed = self._placed(state.rounds)
        after, found, bad = self._loop.run(placed, self.backbone, rounds, self.key, self._first)
        stacked = jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *found) if found else None
        metrics = {} if stacked is None else self.host_metrics(stacked, len(found))
        return self._outcome(SimulationState(after, self.algorithm), metrics, bad)

    @functools.cached_property
    def _first(self) -> Any:
        return jax.tree_util.Partial(self._first_rows)

    def _outcome(self, state: SimulationState, metrics: dict[str, np.ndarray], bad: int):
        if bad == OVERFLOW:
            message = (
                f"the sampler drew more clients than its capacity of {self.sampler.capacity}; raise it and start again."
            )
            raise CohortOverflow(message, state, metrics)
        if bad == OUTSIDE:
            message = (
                f"the sampler drew an id outside of 0 to {self.population.n_clients - 1}; make it for this population."
            )
            raise UnknownClient(message, state, metrics)
        if bad != NO_CLIENT:
            raise NonFiniteClient(bad, state, metrics)
        return state, metrics

    def host_metrics(self, buffer: Any, completed: int) -> dict[str, np.ndarray]:
        """What `run` returns, from the sums and counts of the first `completed` rounds of a buffer."""
        buffer = jax.tree.map(lambda x: np.asarray(x)[:completed], buffer)
        counts, ratios = buffer["counts"], buffer["ratios"].items()
        metrics = {  # of a round without anybody they are unknown, not zero
            name: np.where(count > 0, total / np.where(count > 0, count, 1), np.nan) for name, (total, count) in ratios
        }
        metrics |= {"examples": counts["examples"].astype(np.int64), "clients": counts["arrived"].astype(np.int64)}
        bills = self.messages.bills
        by_shape_up = np.array([bill.up if bill.up_is_exact else 0 for bill in bills], np.int64)
        by_shape_down = np.array([bill.down if bill.down_is_exact else 0 for bill in bills], np.int64)
        metrics["uplink_bytes"] = counts["clients"] @ by_shape_up + of_digits(counts["uplink"]).sum(-1)
        metrics["downlink_bytes"] = counts["started"] @ by_shape_down + of_digits(counts["downlink"]).sum(-1)
        return metrics

    def __repr__(self) -> str:
        return summarise(self)


def _nbytes(population: Population) -> int:
    return sum(array.nbytes for array in population.arrays.values())


def _device_data(population: Population) -> DeviceData:
    """Flat arrays with i32 offsets; refuses what the device would narrow in silence."""
    if population.n_examples > np.iinfo(np.int32).max:
        raise ValueError(
            f"at most {np.iinfo(np.int32).max} examples fit one device array, got {population.n_examples}; "
            "stream them with data='host'"
        )
    return DeviceData({k: np.asarray(v) for k, v in population.arrays.items()}, population.offsets.astype(np.int32))


def _device_data_shapes(population: Population) -> DeviceData:
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
    offsets = jax.ShapeDtypeStruct((population.n_clients + 1,), np.int32)
    return DeviceData({name: shape(array) for name, array in population.arrays.items()}, offsets)


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
