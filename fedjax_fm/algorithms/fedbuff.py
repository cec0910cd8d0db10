"""FedBuff: Federated Learning with Buffered Asynchronous Aggregation.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, 2021, arXiv 2106.06639, algorithm
1. A client is sent version v of w, the newest when it starts, and uploads when it is
done; tau_k versions were made in the meantime:

    client:  D_k = w_v - w_k,  w_k after local steps from w_v         `_client`
    server:  D = 1/K sum_k s(tau_k) D_k over a buffer of K arrivals,
             s(tau) = (1 + tau)^(-1/2)                `polynomial_staleness`, `_reduce`
             w <- server_optimizer(w, D)                              `_server`

One round of the engine is one server update. Which client arrives with which version is
read from an event log (`systems.asynchronous`), which the sampler `_replay` follows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, local_training
from fedjax_fm.algorithms.reduce import total
from fedjax_fm.systems.clock import Schedule
from fedjax_fm.types import (
    Algorithm,
    ClientOutput,
    Exchange,
    Reduce,
    Sampler,
    Setting,
    Task,
    Tree,
    Unbilled,
)


class Log(NamedTuple):
    """The event log, one row for each server update."""

    ids: jax.Array  # i32[rounds, K], who arrives
    versions: jax.Array  # i32[rounds, K], which version each of them started from
    seconds: jax.Array  # f32[rounds], when the update happens


class FedBuffState(NamedTuple):
    """Server state: the newest version, and those that clients may be working on.

    Attributes:
      delta: w.
      history: leaves [V, ...], version v at v mod V.
      optimizer: the server optimizer's state.
      round: i32[], the number of the newest version.
      log: who arrives when.
    """

    delta: Tree
    history: Tree
    optimizer: Any
    round: jax.Array
    log: Log


class Broadcast(NamedTuple):
    """What the version of every client is looked up in, at the server."""

    history: Tree  # leaves [V, ...]
    newest: jax.Array  # i32[]
    ids: jax.Array  # i32[rounds, K]
    versions: jax.Array  # i32[rounds, K]


class Message(NamedTuple):
    """What one client is sent; only the model is billed."""

    delta: Tree  # w_v
    age: Any  # i32[], tau_k


class _FedBuff(NamedTuple):
    """The hyper-parameters of `fedbuff`, checked."""

    local: LocalTraining
    server_optimizer: optax.GradientTransformation
    schedule: Schedule
    staleness: Callable[[jax.Array], jax.Array]  # s

    @property
    def rounds(self) -> int:
        """Server updates in the log."""
        return self.schedule.ids.shape[0]

    @property
    def buffer_size(self) -> int:
        """K."""
        return self.schedule.ids.shape[1]

    @property
    def n_versions(self) -> int:
        """V, what the oldest arrival needs."""
        return int(self.schedule.staleness.max()) + 1


def polynomial_staleness(exponent: float = 0.5) -> Callable[[jax.Array], jax.Array]:
    """The weight of an update by its age: s(tau) = (1 + tau)^-exponent.

    Args:
      exponent: at least 0; 0 counts stale updates in full, 1/2 is the paper's.

    Returns:
      `tau f32[] -> f32[]`.

    Raises:
      TypeError, ValueError: the exponent is no number, or negative.
    """
    checks.real("exponent", exponent, least=0)
    return lambda staleness: (1.0 + staleness) ** -exponent


def fedbuff(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    schedule: Schedule,
    staleness: Callable[[jax.Array], jax.Array] | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Buffered asynchronous averaging, replayed from an event log.

        w <- server_optimizer(w, 1/K sum_k s(tau_k) (w_v(k) - w_k))

    The log decides who takes part; `cohort_size` is `schedule.ids.shape[1]`, the size K
    of the buffer. After its last row no client arrives.

    Sends: down the version that a client starts from, up its update. Memory at the
    server: as many versions as the oldest arrival needs.

    Metrics: `seconds` on the virtual clock, `staleness`, the mean age of the buffer's
    updates in versions.

    Args:
      task: the loss.
      client_optimizer: starts afresh each time that a client starts.
      server_optimizer: applied to the weighted sum over the buffer, divided by K; None
        means `optax.sgd(1.0)`.
      schedule: from `systems.asynchronous`, for the same local work and the same bytes.
      staleness: s(tau), f32[] -> f32[]; default `polynomial_staleness()`.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedBuffState`; clients keep nothing. It makes
      its own sampler.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.
      ValueError: later, a simulator was given a sampler or another cohort size.

    References:
      Nguyen et al. 2021, arXiv 2106.06639, algorithm 1.

    Example:
      >>> import fedjax_fm as ffm
      >>> schedule = Schedule(  # client 1 took two rounds, client 2 started late
      ...     ids=np.array([[0], [1], [2]]),
      ...     versions=np.array([[0], [0], [2]]),
      ...     started=np.array([[0.0], [0.0], [2.0]]),
      ...     arrived=np.array([[1.0], [2.0], [3.0]]),
      ... )
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = fedbuff(task, optax.sgd(0.5), schedule=schedule, **how)
      >>> clients = [{"x": jnp.array([x])} for x in (2.0, 4.0, 6.0)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 3)
      >>> metrics["staleness"].tolist(), metrics["seconds"].tolist()
      ([0.0, 1.0, 0.0], [1.0, 2.0, 3.0])
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.server_optimizer("server_optimizer", server_optimizer)
    _check_schedule(schedule, staleness)
    method = _FedBuff(
        local=local,
        server_optimizer=server_optimizer or optax.sgd(1.0),
        schedule=schedule,
        staleness=staleness or polynomial_staleness(),
    )
    exchange = Exchange(
        broadcast=_broadcast,
        client=lambda backbone, message: partial(_client, method, backbone),
        server=partial(_server, method),
        reduce=_reduce(method),
        batches=local.batches,
        address=partial(_address, method),
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(exchange,),
        sampler=partial(_sampler, method),
    )


def _check_schedule(schedule: Schedule, staleness: Callable | None) -> None:
    if not isinstance(schedule, Schedule):
        raise TypeError(
            "expected schedule from systems.asynchronous(...), "
            f"got schedule={schedule!r}"
        )
    if staleness is not None and not callable(staleness):
        raise TypeError(
            "expected staleness as a function of the age, "
            f"polynomial_staleness(0.5) for example, got staleness={staleness!r}"
        )


def _init(method: _FedBuff, delta, key, setting) -> FedBuffState:
    """Version 0, in every place of the history."""
    schedule, n_versions = method.schedule, method.n_versions

    def repeated(x):
        return jnp.broadcast_to(x, (n_versions, *jnp.shape(x)))

    log = Log(
        ids=jnp.asarray(schedule.ids),
        versions=jnp.asarray(schedule.versions),
        seconds=jnp.asarray(np.float32(schedule.seconds)),
    )
    return FedBuffState(
        delta=delta,
        history=jax.tree.map(repeated, delta),
        optimizer=method.server_optimizer.init(delta),
        round=jnp.int32(0),
        log=log,
    )


def _broadcast(state: FedBuffState) -> Broadcast:
    """All that `_address` reads."""
    return Broadcast(
        history=state.history,
        newest=state.round,
        ids=state.log.ids,
        versions=state.log.versions,
    )


def _address(method: _FedBuff, message: Broadcast, state, client) -> Message:
    """The version that this arrival started from, and how old it is by now."""
    row = jnp.minimum(message.newest, method.rounds - 1)
    is_own = message.ids[row] == client
    version = jnp.max(jnp.where(is_own, message.versions[row], 0))
    place = version % method.n_versions
    return Message(
        delta=jax.tree.map(lambda x: x[place], message.history),
        age=Unbilled(message.newest - version),
    )


def _client(
    method: _FedBuff, backbone, message: Message, state, data, key
) -> ClientOutput:
    """D_k = w_v - w_k with the weight s(tau_k)."""
    trained, metrics = method.local.run(message.delta, backbone, data, key)
    age = message.age.astype(jnp.float32)
    return ClientOutput(
        upload=trees.subtract(message.delta, trained),
        weight=method.staleness(age),
        state=state,
        metrics={**metrics, "staleness": (age, jnp.float32(1))},
    )


def _reduce(method: _FedBuff) -> Reduce:
    """D = 1/K sum_k s(tau_k) D_k, divided by K and not by the sum of weights."""

    def lift(server, sent, weight):
        return jax.tree.map(lambda x: weight * x, sent)

    def mean_of_buffer(sums, setting):
        return jax.tree.map(lambda x: x / method.buffer_size, sums)

    return total(lift)._replace(finish=mean_of_buffer)


def _server(method: _FedBuff, state: FedBuffState, aggregate, key):
    """A new version: w <- server_optimizer(w, D)."""
    updates, moments = method.server_optimizer.update(
        aggregate.value, state.optimizer, state.delta
    )
    delta = optax.apply_updates(state.delta, updates)
    newest = state.round + 1
    place = newest % method.n_versions
    history = jax.tree.map(lambda h, x: h.at[place].set(x), state.history, delta)
    row = jnp.minimum(state.round, method.rounds - 1)
    after = FedBuffState(
        delta=delta,
        history=history,
        optimizer=moments,
        round=newest,
        log=state.log,
    )
    return after, {"seconds": state.log.seconds[row]}


def _sampler(method: _FedBuff, chosen: Sampler | None, setting: Setting) -> Sampler:
    """`Algorithm.sampler`: the log's, beside which there is no other."""
    if chosen is not None:
        raise ValueError(
            "FedBuff's event log says who takes part: expected no sampler beside it"
        )
    if setting.cohort_size != method.buffer_size:
        raise ValueError(
            f"expected cohort_size={method.buffer_size}, the arrivals of an update "
            f"in the schedule, got cohort_size={setting.cohort_size}"
        )
    return _replay(method)


def _replay(method: _FedBuff) -> Sampler:
    """Draws row t of the log in round t; no client after its end."""

    def draw(state, key):
        row = jnp.minimum(state, method.rounds - 1)
        ids = jnp.asarray(method.schedule.ids)[row]
        n_active = jnp.where(state < method.rounds, method.buffer_size, 0)
        return ids, n_active.astype(jnp.int32), state + 1

    return Sampler(init=lambda: jnp.int32(0), draw=draw, capacity=method.buffer_size)
