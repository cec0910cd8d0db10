"""FedBuff: Federated Learning with Buffered Asynchronous Aggregation.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, 2021, arXiv 2106.06639 (algorithm 1).

    client:  starts from version v of w, sends D_k = w_v - w_k whenever it is done
    server:  after K arrivals w <- server_optimizer(w, 1/K sum_k s(tau_k) D_k),  tau_k
      versions old,  s = (1 + tau)^(-1/2)

One round of the engine is one server update. Who arrives with which version is an event
log (`systems.asynchronous`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.reduce import total
from fedjax_fm.systems.clock import Schedule
from fedjax_fm.types import (
    Algorithm,
    ClientOutput,
    Exchange,
    Sampler,
    Setting,
    Task,
    Tree,
    Unbilled,
)


class FedBuffState(NamedTuple):
    """Server state: the newest version, and those that clients may still be working on."""

    delta: Tree
    history: Tree  # leaves [V, ...]: version v at v mod V
    optimizer: Any
    round: jax.Array  # i32[], the newest version
    log: tuple[
        jax.Array, jax.Array, jax.Array
    ]  # ids, versions i32[rounds, K], seconds f32[rounds]


def polynomial_staleness(exponent: float = 0.5) -> Callable[[jax.Array], jax.Array]:
    """s(tau) = (1 + tau)^-exponent; 0 counts stale updates in full."""
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
    """Replays an event log.

    The method decides who takes part, with `cohort_size = schedule.ids.shape[1]`.

    A run cannot be longer than the log: its arrivals end there, and behind its end
      nobody takes part.

    Args:
      schedule: from `systems.asynchronous`, for the same local work and the same bytes.
      staleness: s(tau), default `polynomial_staleness()`.

    Sends: down the version that a client starts from, up its update. Memory at the
    server: as many versions as the oldest arrival needs.

    Metrics: `seconds` on the virtual clock, `staleness`, the mean of the buffer.
    """
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.server_optimizer("server_optimizer", server_optimizer)
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"expected schedule from systems.asynchronous(...), got schedule={schedule!r}"
        )
    if staleness is not None and not callable(staleness):
        raise TypeError(
            "expected staleness as a function of the age, "
            f"polynomial_staleness(0.5) for example, got staleness={staleness!r}"
        )
    weight_of = staleness or polynomial_staleness()
    rounds, buffer_size = schedule.ids.shape
    n_versions = int(schedule.staleness.max()) + 1

    def init(delta, key, setting):
        history = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (n_versions, *jnp.shape(x))), delta
        )
        ids, versions, seconds = map(
            jnp.asarray, (schedule.ids, schedule.versions, np.float32(schedule.seconds))
        )
        return FedBuffState(
            delta=delta,
            history=history,
            optimizer=optimizer.init(delta),
            round=jnp.int32(0),
            log=(ids, versions, seconds),
        )

    def broadcast(state):
        return {
            "history": state.history,
            "newest": state.round,
            "ids": state.log[0],
            "versions": state.log[1],
        }

    def address(message, state, client):
        """The version that this arrival started from, and how old it is by now."""
        row = jnp.minimum(message["newest"], rounds - 1)
        version = jnp.max(
            jnp.where(message["ids"][row] == client, message["versions"][row], 0)
        )
        model = jax.tree.map(lambda x: x[version % n_versions], message["history"])
        return {"delta": model, "age": Unbilled(message["newest"] - version)}

    def client(backbone, message):
        def one(mine, state, data, key):
            trained, metrics = local.run(mine["delta"], backbone, data, key)
            age = mine["age"].astype(jnp.float32)
            metrics = {**metrics, "staleness": (age, jnp.float32(1))}
            return ClientOutput(
                upload=trees.subtract(mine["delta"], trained),
                weight=weight_of(age),
                state=state,
                metrics=metrics,
            )

        return one

    def server(state, aggregate, key):
        updates, moments = optimizer.update(
            aggregate.value, state.optimizer, state.delta
        )
        delta, newest = optax.apply_updates(state.delta, updates), state.round + 1
        history = jax.tree.map(
            lambda h, x: h.at[newest % n_versions].set(x), state.history, delta
        )
        metrics = {"seconds": state.log[2][jnp.minimum(state.round, rounds - 1)]}
        return FedBuffState(
            delta=delta, history=history, optimizer=moments, round=newest, log=state.log
        ), metrics

    def lift(server, sent, weight):
        return jax.tree.map(lambda x: weight * x, sent)

    def mean_of_buffer(sums, setting):
        return jax.tree.map(lambda x: x / buffer_size, sums)

    reduce = total(lift)._replace(finish=mean_of_buffer)
    exchange = Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=reduce,
        batches=local.batches,
        address=address,
    )

    def sampler(chosen: Sampler | None, setting: Setting) -> Sampler:
        if chosen is not None:
            raise ValueError(
                "FedBuff's event log says who takes part: expected no sampler beside it"
            )
        if setting.cohort_size != buffer_size:
            raise ValueError(
                f"expected cohort_size={buffer_size}, the arrivals of an update "
                f"in the schedule, got cohort_size={setting.cohort_size}"
            )
        return _replay(schedule)

    return Algorithm(init=init, exchanges=(exchange,), sampler=sampler)


def _replay(schedule: Schedule) -> Sampler:
    """Round t is row t of the log; behind its end nobody arrives."""
    rounds, buffer_size = schedule.ids.shape

    def draw(state, key):
        row = jnp.asarray(schedule.ids)[jnp.minimum(state, rounds - 1)]
        return (
            row,
            jnp.where(state < rounds, buffer_size, 0).astype(jnp.int32),
            state + 1,
        )

    return Sampler(init=lambda: jnp.int32(0), draw=draw, capacity=buffer_size)
