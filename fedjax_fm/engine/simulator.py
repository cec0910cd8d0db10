"""The simulator: runs an algorithm over a population."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_fm import checks, trees
from fedjax_fm.channels.identity import identity
from fedjax_fm.engine import hosts
from fedjax_fm.engine.arguments import (
    check_delta,
    check_kinds,
    check_population,
    check_state,
)
from fedjax_fm.engine.billing import bytes_per_client, unless_empty
from fedjax_fm.engine.compiled import Compiled, does_not_fit
from fedjax_fm.engine.data import DeviceData, of_population, shapes_of
from fedjax_fm.engine.dealt import DealtPopulation
from fedjax_fm.engine.dealt_rows import Part, part_of_all
from fedjax_fm.engine.devices import client_mesh
from fedjax_fm.engine.devices import compiler_options as options_of
from fedjax_fm.engine.faults import Fault, error_of
from fedjax_fm.engine.guarantee import check_rounds, check_sampling, with_epsilon
from fedjax_fm.engine.memory_maps import make_room
from fedjax_fm.engine.parts import Engine
from fedjax_fm.engine.plan import Plan, make_plan
from fedjax_fm.engine.programs import Programs, concatenated, on_host
from fedjax_fm.engine.shapes import (
    Messages,
    Shapes,
    first_state,
    shapes_for,
    with_key,
)
from fedjax_fm.engine.state import (
    HostStore,
    RoundState,
    SimulationState,
    row_of,
)
from fedjax_fm.engine.state_rows import can_travel
from fedjax_fm.engine.summary import Layout, summary
from fedjax_fm.engine.target import Target, this_machine
from fedjax_fm.population import samplers
from fedjax_fm.population.population import Population
from fedjax_fm.types import Algorithm, Behaviour, Channel, Sampler, Setting, Tree

Where = Literal["auto", "device", "host"]
Callback = Callable[[int, SimulationState, dict[str, np.ndarray]], Any]
MOST_SEED = 2**63 - 1
# bytes of all clients' states; smaller ones lie whole on every device, which saves talk
SHARED_FROM = 64 << 20  # where rows cannot travel one by one
_TARGET_HINT = "make one with aot.topology('v5e:2x4')"


class Simulator:
    """Simulates `algorithm` over `population`; print it for a summary.

    Args:
      algorithm: for example `fedavg(...)`.
      population: the clients' data; of several hosts that have their own, a
        `DealtPopulation`.
      backbone: frozen parameters, an operand of every round; () if there are none.
      cohort_size: clients a round.
      uplink, downlink: channels; None sends the arrays as they are.
      seed: names every random number of the run.
      devices: how many devices are used; default all (one, where the whole cohort is a
        single small block on CPU).
      block_size: clients that a device computes at once; default see `make_plan`,
        halved until the compiled rounds fit into `memory` (on CPU only if that is
        given).
      sampler: default uniform without replacement.
      behaviour: stragglers and drop-outs.
      model_parallel: devices over which the backbone is split (mesh axis `model`); the
        others carry clients.
      parallel: "shard_map", or "pmap" for one dispatch per exchange on older set-ups.
      data: "device" copies the population there once; "host" streams every cohort from
        (memory-mapped) host arrays.
      states: "device" keeps the states of all clients there, each device its part of
        them where they are large; "host" spills them, and updates them in place: after
        `run`, the state that went in is used up.
      memory: bytes a device may use; default all. "auto" keeps data and states on the
        device while each takes at most a quarter of it.
      target: machines; default this one. For others, of `fedjax_fm.aot.topology`, the
        rounds can be compiled, not run; backbone and delta may then be shapes.
      compiler_options: of XLA, for the rounds, besides those that are set here.

    Raises:
      TypeError, ValueError: an argument is of another kind or makes no sense; a private
        method meets another sampler than it was accounted for.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
      >>> clients = [{"x": np.full(4, float(k))} for k in range(10)]
      >>> simulator = Simulator(
      ...     ffm.fedavg(task, optax.sgd(0.1), epochs=1, batch_size=2),
      ...     ffm.Population.from_clients(clients),
      ...     cohort_size=5,
      ... )
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), rounds=3)
      >>> state.round, metrics["uplink_bytes"].tolist()
      (3, [20, 20, 20])
    """

    def __init__(
        self,
        algorithm: Algorithm,
        population: Population | DealtPopulation,
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
        target: Target | None = None,
        compiler_options: Mapping[str, Any] | None = None,
    ):
        check_kinds(
            algorithm=algorithm,
            population=population,
            uplink=uplink,
            downlink=downlink,
            sampler=sampler,
            behaviour=behaviour,
        )
        checks.whole("cohort_size", cohort_size, least=1)
        checks.whole("seed", seed, least=0, most=MOST_SEED)
        sizes = {"devices": devices, "block_size": block_size, "memory": memory}
        for name, size in sizes.items():
            if size is not None:
                checks.whole(name, size, least=1)
        checks.whole("model_parallel", model_parallel, least=1)
        checks.choice("parallel", parallel, ("shard_map", "pmap"))
        if parallel == "pmap" and model_parallel > 1:
            raise ValueError(
                "expected model_parallel=1 with parallel='pmap', got "
                f"model_parallel={model_parallel}"
            )
        for name, where in (("data", data), ("states", states)):
            checks.choice(name, where, get_args(Where))
        _check_examples(population)
        make_room()  # for this simulation's programs
        self.algorithm, self.population = algorithm, population
        self.setting = Setting(population.n_clients, cohort_size)
        self.sampler = _sampler_of(algorithm, sampler, self.setting)
        self._model_parallel = model_parallel
        self._devices, self._block_size = devices, block_size
        checks.instance("target", target, Target, _TARGET_HINT, optional=True)
        self.target = this_machine() if target is None else target
        self._options = options_of(self.target.platform) | dict(compiler_options or {})
        mesh = client_mesh(devices, model_parallel, self.target)
        _check_processes(mesh, self.target)
        self._n_devices = mesh.size // model_parallel
        # Each of several processes has to take part in every program.
        self._least_devices = self._n_devices if hosts.are_several() else 1
        make_plan(self.sampler.capacity, self._n_devices, block_size)  # may refuse
        self.memory = memory or hosts.least_of(self.target.memory)
        self._limited = memory is not None
        self._states = states
        is_large = trees.nbytes(shapes_of(population).arrays) > self.memory // 4
        self.streams = data == "host" or (data == "auto" and is_large)
        check_sampling(algorithm, self.sampler, self.setting)
        self._make_engine = functools.partial(
            Engine,
            algorithm=algorithm,
            setting=self.setting,
            uplink=unless_empty(uplink or identity()),
            downlink=unless_empty(downlink or identity()),
            behaviour=behaviour or Behaviour(),
            parallel=parallel,
            **_sizes_of(population),
        )
        self.key = jax.random.key(seed)  # of states that `init` is given no seed for
        self.backbone = backbone  # on the devices as soon as there is a layout
        self._programs: Programs | None = None
        self._shapes: Shapes | None = None

    @property
    def defined_by(self) -> dict[str, object]:
        """What makes its rounds these and no others, besides data, weights and the seed."""
        return {**self._make_engine.keywords, "sampler": self.sampler}

    # Layout

    @property
    def programs(self) -> Programs:
        """What the layout decides: programs, and where backbone and data lie."""
        if self._programs is None:
            raise RuntimeError(
                "call `init(delta)` first: layout and messages depend on the trainable tree"
            )
        return self._programs

    @property
    def shapes(self) -> Shapes:
        """What the shapes of the trainable tree decide: messages, clients' states."""
        if self._shapes is None:
            raise RuntimeError(
                "call `init(delta)` first: layout and messages depend on the trainable tree"
            )
        return self._shapes

    @property
    def plan(self) -> Plan | None:
        """The layout over devices and blocks; None before `init`."""
        return None if self._programs is None else self._programs.engine.plan

    @property
    def engine(self) -> Engine:
        """What is fixed for the run."""
        return self.programs.engine

    @property
    def data(self) -> DeviceData | None:
        """The population on the devices; None if it is streamed."""
        return self.programs.data

    @property
    def messages(self) -> Messages:
        """Shapes and bytes of what travels."""
        return self.shapes.messages

    @property
    def spills(self) -> bool:
        """Whether clients' states lie in host memory."""
        parts = self.engine.plan.n_devices if self._may_share else 1
        is_too_large = self.shapes.bytes_of_states // parts > self.memory // 4
        return self._states == "host" or (self._states == "auto" and is_too_large)

    @property
    def _may_share(self) -> bool:
        """Whether each device may hold its part of the clients' states.

        Always where rows can travel one by one: else every device would have to be told
        of all of them. pmap keeps all states on every device.
        """
        travels = can_travel(list(self.engine.mesh.devices.flat))
        pays = self.shapes.bytes_of_states > (0 if travels else SHARED_FROM)
        is_one_program = self.engine.parallel == "shard_map"
        several = self.engine.plan.n_devices > 1
        return pays and is_one_program and several

    def lay_out(self, plan: Plan) -> None:
        """Places data and backbone for this plan.

        A resumed run does so with the plan of its first part, as that decides the order
        of float sums.

        Args:
          plan: from `make_plan`, or from a run folder.
        """
        if self.plan == plan:
            return
        if self._programs is None:
            self._check_hosts(plan)
        n_devices, parts = plan.n_devices * self._model_parallel, self._model_parallel
        mesh = client_mesh(n_devices, parts, self.target)
        self._programs = Programs(
            self._make_engine(plan=plan, mesh=mesh),
            self.sampler,
            self.population,
            backbone=self.backbone,
            data=self._data_of(self.population),
            target=self.target,
            options=self._options,
        )
        self.backbone = self._programs.backbone
        if self._shapes is not None:
            self._share_states()

    def _data_of(self, population: Any) -> DeviceData | Part | None:
        """What goes to the devices once; None where cohorts are streamed."""
        if self.streams:
            return None
        if not self.target.is_here:
            return shapes_of(population)
        is_dealt = isinstance(population, DealtPopulation)
        return part_of_all(population) if is_dealt else of_population(population)

    def _check_hosts(self, plan: Plan) -> None:
        """Refuses hosts that have other data, weights or settings."""
        sizes, arrays = self.population.offsets, self.population.arrays
        is_dealt = isinstance(self.population, DealtPopulation)  # each has others
        hosts.check_agreement(
            {
                "packages": hosts.versions(),
                "settings": f"{plan} {self.setting} {self._model_parallel}",
                "seed": self.key,
                "clients' sizes": sizes,
                # streamed data may be larger than memory
                "data": () if self.streams or is_dealt else arrays,
                "backbone": self.backbone,
            }
        )

    def init(self, delta: Tree, *, seed: int | None = None) -> SimulationState:
        """The state before the first round.

        Args:
          delta: the trainable tree.
          seed: in the place of the simulator's; another one costs no compile.

        Returns:
          What `run` takes.

        Raises:
          TypeError, ValueError: delta is empty, or holds what is no finite array; a
            client's state changes its form in a round.
          RuntimeError: the target's machines are not here.
        """
        if not self.target.is_here:
            raise RuntimeError(
                f"this simulator is for {self.target.name}, which is not here: call "
                "`compile(delta)`, or make one without `target`"
            )
        check_delta(delta)
        key = self.key
        if seed is not None:
            key = jax.random.key(checks.whole("seed", seed, least=0, most=MOST_SEED))
        self._prepare(delta)
        # It may come from a simulator with more devices.
        delta = self.programs.on_devices(delta, self.programs.everywhere)
        placed = self.programs.placed(self.first_state(delta, key))
        return SimulationState(carry=placed, key=key, algorithm=self.algorithm)

    def compile(self, delta: Tree) -> Compiled:
        """Compiles the rounds for the target, before anything is run.

        `run` uses what is compiled here: nothing is compiled twice.

        Args:
          delta: the trainable tree, or its shapes.

        Returns:
          The program and what can be said of it: bytes on each device, what is donated,
          what devices send to each other.

        Raises:
          DoesNotFit: the rounds need more memory than a device of the target has.
          ValueError: the host drives these rounds (streamed data, spilled states,
            pmap), one program a round: they are compiled as they run.

        Example:
          >>> import optax, fedjax_fm as ffm
          >>> task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
          >>> population = ffm.Population.from_clients([{"x": np.ones(4)}] * 3)
          >>> method = ffm.fedavg(task, optax.sgd(0.1), epochs=1, batch_size=2)
          >>> simulator = Simulator(method, population, cohort_size=2)
          >>> simulator.compile(jax.ShapeDtypeStruct((), jnp.float32)).fits
          True
        """
        state = self._prepared_ahead(delta)
        try:
            ready = self.programs.compile(state, self.key)
        except jax.errors.JaxRuntimeError as error:
            raise does_not_fit(error, self.target) from error
        return Compiled(
            target=self.target,
            engine=self.engine,
            program=ready.compiled,
            state=state,
            backbone=self.programs.backbone,
            data=self.programs.data,
            seconds=ready.seconds,
            memory=self.memory,
        )

    def lower(self, delta: Tree) -> Any:
        """The rounds in the language of the target's compiler, not compiled.

        Args:
          delta: the trainable tree, or its shapes.

        Returns:
          A `jax.stages.Lowered`.

        Raises:
          ValueError: as for `compile`.
        """
        state = self._prepared_ahead(delta)
        return self.programs.lower(state, self.key)

    def _prepared_ahead(self, delta: Tree) -> RoundState:
        """The state before the first round, by shape, for rounds of one program."""
        self._prepare(delta)
        if self.streams or self.spills or self.engine.parallel == "pmap":
            raise ValueError(
                "expected data and states on the device and parallel='shard_map' for "
                f"rounds that are compiled ahead, got streamed data: {self.streams}, "
                f"spilled states: {self.spills}, parallel={self.engine.parallel!r}"
            )
        return jax.eval_shape(self.first_state, trees.shapes(delta))

    def _prepare(self, delta: Tree) -> None:
        """Settles layout and messages; nothing is computed."""
        is_first = self._programs is None
        if is_first:
            self.lay_out(self._plan_for(delta))
        known = None if self._shapes is None else self._shapes.delta
        if known is None or trees.difference(known, trees.shapes(delta)):
            shapes = shapes_of(self.population)
            self._shapes = shapes_for(
                self.engine, self.backbone, data=shapes, delta=delta, key=self.key
            )
            self._share_states()
        if is_first and self._may_narrow:
            self._narrow_until_it_fits(delta)

    def first_state(self, delta: Tree, key: jax.Array | None = None) -> RoundState:
        """The state of round 0, before it is placed on devices.

        Args:
          delta: the trainable tree.
          key: of the run; None: of the simulator's seed.
        """
        key = self.key if key is None else key
        shapes = with_key(self.shapes, key)
        return first_state(
            self.engine,
            self.sampler,
            shapes,
            delta=delta,
            key=key,
            spills=self.spills,
        )

    def with_population(self, population: Population | DealtPopulation) -> "Simulator":
        """A simulator of other data that is the same in all else.

        It shares the compiled programs: where the arrays have the same shapes and the
        largest and the smallest client as many examples as before, nothing is compiled
        again.

        Args:
          population: of as many clients, with the same columns; states of this
            simulator go on with it.

        Returns:
          A simulator; this one stays as it is.

        Raises:
          ValueError: another number of clients, which the sampler, the cohort and
            states were made for.
        """
        check_population(population)
        if population.n_clients != self.population.n_clients:
            raise ValueError(
                f"expected a population of {self.population.n_clients} clients, as "
                f"before, got {population.n_clients}; make a new Simulator for it"
            )
        _check_examples(population)
        other = copy.copy(self)
        other.population = population
        sizes = _sizes_of(population)
        other._make_engine = functools.partial(self._make_engine, **sizes)
        if self._programs is not None:
            engine = self.engine._replace(**sizes)
            data = self._data_of(population)
            other._programs = self._programs.with_data(engine, population, data)
        return other

    def _share_states(self) -> None:
        """Lets each device hold its part of the clients' states where that pays."""
        shares = self._may_share and not self.spills
        if shares != self.engine.shares_states:
            engine = self.engine._replace(shares_states=shares)
            self._programs = self.programs.of(engine)

    def _plan_for(self, delta: Tree) -> Plan:
        return make_plan(
            self.sampler.capacity,
            self._n_devices,
            self._block_size,
            lane_bytes=3
            * trees.nbytes(trees.shapes(delta)),  # delta, upload, optimizer
            fixed_devices=self._devices is not None or self._model_parallel > 1,
            platform=self.target.platform,
            least_devices=self._least_devices,
        )

    @property
    def _may_narrow(self) -> bool:
        """Whether the block's size is ours to choose, and memory is limited."""
        is_limited = self._limited or self.target.platform != "cpu"
        return self._block_size is None and is_limited

    def _narrow_until_it_fits(self, delta: Tree) -> None:
        """Halves the block while the compiled rounds need more than a device's memory.

        Rounds that the host drives, whose shapes are not known before, stay as the rule
        has them.
        """
        if self.streams or self.spills:
            return
        state = jax.eval_shape(self.first_state, trees.shapes(delta))
        while (plan := self.engine.plan).block_size > 1:
            needed = self.programs.bytes_needed(state, self.key)
            if needed is None or needed <= self.memory:
                return
            half = plan.block_size // 2
            least = self._least_devices
            self.lay_out(
                make_plan(
                    self.sampler.capacity, plan.n_devices, half, least_devices=least
                )
            )

    # Rounds

    def bytes_per_client(self, state: SimulationState) -> tuple[int, int]:
        """(uplink, downlink) bytes of one client in one round.

        The lengths of the packed buffers. At most, where an exchange selects some of
        the clients or the data decide; the metrics of `run` are exact.

        Args:
          state: any.
        """
        return bytes_per_client(self.messages.bills)

    def run(
        self,
        state: SimulationState,
        rounds: int,
        *,
        every: int = 1,
        callbacks: Sequence[Callback] = (),
        donate: bool = False,
    ) -> tuple[SimulationState, dict[str, np.ndarray]]:
        """Runs `rounds` rounds.

        Args:
          state: from `init`, or from `run` to go on.
          rounds: how many.
          every: rounds between two calls of the callbacks, which are called after the
            last round, too.
          callbacks: functions of (round, state, metrics so far), see
            `fedjax_fm.callbacks`; the numbers that they return are columns of the
            metrics, NaN for the rounds between.
          donate: the rounds take over the clients' states in `state`, which is used up
            by that; else they begin with a copy.

        Returns:
          (state, metrics): {name: array[rounds]} with at least `loss`
          (example-weighted, over all local steps) and, summed over those of the cohort
          whose upload arrived, `clients`, `examples` (that they hold),
          `examples_processed` (rows in the batches of their local steps),
          `uplink_bytes`, and `downlink_bytes` of all who were sent something; where
          clients can drop out, `clients_lost` and `examples_lost`, which those had
          processed; of a method that was accounted for also `epsilon`, spent after each round.
          `pandas.DataFrame(metrics)` is a table of it.

        Raises:
          NonFiniteClient: a loss or an upload was not finite; SumOverflow: only the sum
            of the uploads was not.
          CohortOverflow, UnknownClient: the sampler drew more clients than its
            capacity, or one that is not there.
          RuntimeError: the state was donated before, or its spilled store has gone on
            with another run.
          ValueError: a private method would run past the rounds that it was accounted for.
          CallbackError: a callback raised; says which one, and holds the state.
        """
        checks.whole("rounds", rounds, least=0)
        checks.whole("every", every, least=1)
        if callbacks:
            from fedjax_fm.callbacks.loop import run_with_callbacks  # knows simulators

            return run_with_callbacks(
                self, state, rounds, every=every, callbacks=callbacks, donate=donate
            )
        check_state(state, self.shapes.server)
        _check_usable(state)
        done, privacy = state.round, self.algorithm.privacy
        check_rounds(privacy, done, rounds)
        first_rows = with_key(self.shapes, state.key).first_rows
        carry, buffers, fault = self.programs.run(
            state.carry, rounds, key=state.key, first_rows=first_rows, donate=donate
        )
        bills = self.messages.bills
        metrics = concatenated([on_host(buffer, n, bills) for buffer, n in buffers])
        metrics = with_epsilon(metrics, privacy, done)
        state = dataclasses.replace(state, carry=carry)
        if fault != Fault.NONE:
            raise error_of(
                self.programs.who_failed(carry, fault, state.key, first_rows),
                state,
                metrics,
                capacity=self.sampler.capacity,
                n_clients=self.population.n_clients,
            )
        return state, metrics

    # Models

    def client_state(self, state: SimulationState, client: int) -> Any:
        """What the method keeps for one client, wherever the states lie.

        Args:
          state: from `init` or `run`.
          client: its id, 0 to N - 1.

        Returns:
          A tree of arrays, () for a method that keeps nothing. Of a client that has not
          taken part, what it starts with. Of several processes all ask together.

        Raises:
          ValueError: no such client.
        """
        check_state(state, self.shapes.server)
        checks.whole("client", client, least=0, most=self.population.n_clients - 1)
        store = state.carry.clients
        if not isinstance(store, HostStore):
            place = self.programs.everywhere if hosts.are_several() else None
            return row_of(store, jnp.int32(client), place)
        if store.touched[client]:
            return jax.tree.map(lambda x: x[client].copy(), store.rows)[0]
        first_rows = with_key(self.shapes, state.key).first_rows
        return first_rows(store.first_delta, jnp.int32(client))[0]

    def model(
        self, state: SimulationState, client: int | None = None
    ) -> tuple[Tree, Tree]:
        """The model to be evaluated: `evaluate(task, *simulator.model(state), arrays)`.

        Args:
          state: from `init` or `run`.
          client: whose; None: the server's. Methods without personal models give the
            server's for every client.

        Returns:
          (delta, backbone): the task's trainable tree, and the backbone that goes with
          it, which some methods change. A method of several architectures gives tuples,
          one entry each.

        Raises:
          ValueError: no such client.

        Example:
          `scores = ffm.evaluate(task, *simulator.model(state, client=3), arrays)`
        """
        check_state(state, self.shapes.server)
        own = None if client is None else self.client_state(state, client)
        server = state.carry.server
        if self.algorithm.model is None:
            return self.algorithm.delta(server), self.backbone
        return self.algorithm.model(server, own, self.backbone)

    @property
    def is_personal(self) -> bool:
        """Whether `model` may be another one for each client."""
        keeps_something = bool(jax.tree.leaves(self.shapes.rows[0]))
        return self.algorithm.model is not None and keeps_something

    def __repr__(self) -> str:
        layout = None
        if self._programs is not None and self._shapes is not None:
            layout = Layout(
                engine=self.engine,
                shapes=self.shapes,
                streams=self.streams,
                spills=self.spills,
                memory=self.memory,
            )
        return summary(
            self.population,
            setting=self.setting,
            capacity=self.sampler.capacity,
            backbone=self.backbone,
            privacy=self.algorithm.privacy,
            layout=layout,
        )


def _sampler_of(
    algorithm: Algorithm, chosen: Sampler | None, setting: Setting
) -> Sampler:
    """The method's own sampler, else the chosen one, else uniform."""
    if algorithm.sampler is not None:
        return algorithm.sampler(chosen, setting)
    return chosen or samplers.uniform(setting.n_clients, setting.cohort_size)


def _check_processes(mesh: Mesh, target: Target) -> None:
    """Refuses a mesh without a device of one of several processes.

    It would wait for the others, or go its own way.
    """
    here = {device.process_index for device in mesh.devices.flat}
    missing = {device.process_index for device in target.devices} - here
    if target.is_here and missing:
        raise ValueError(
            f"devices={mesh.size} leaves out process {', '.join(map(str, missing))}: "
            "of several processes each takes part; leave `devices` out"
        )


def _sizes_of(population: Any) -> dict[str, int]:
    """What the engine knows of clients' sizes."""
    sizes = population.sizes
    return {"n_max": int(sizes.max()), "n_min": int(sizes.min())}


def _check_examples(population: Any) -> None:
    if population.n_examples == 0:
        raise ValueError(f"no client has an example: {population}")


def _check_usable(state: SimulationState) -> None:
    """Refuses a state whose memory has gone to later rounds."""
    arrays = [x for x in jax.tree.leaves(state.carry) if isinstance(x, jax.Array)]
    if any(array.is_deleted() for array in arrays):
        raise RuntimeError(
            "this state was given away by run(..., donate=True); go on from the "
            "state that it returned"
        )
    store = state.carry.clients
    if isinstance(store, HostStore) and store.rounds[0] != state.round:
        raise RuntimeError(
            f"this state is of round {state.round}, but its spilled store has gone "
            f"on to round {store.rounds[0]}: states on the host are updated in "
            "place; go on from the newest state"
        )
