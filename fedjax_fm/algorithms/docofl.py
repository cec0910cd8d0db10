"""DoCoFL: Downlink Compression for Cross-Device Federated Learning.

Dorfman, Vargaftik, Ben-Itzhak, Levy, 2023, arXiv 2302.00543, algorithm 1. Every few
rounds the server makes an anchor y of the model; clients fetch it ahead of time, and
what they wait for when a round starts is a correction of few bits:

    server:  y <- C_a(w) every `every` rounds;  sends C_c(w - y)       `_messages`
    client:  w' = y + C_c(w - y);  w_k <- w';  local steps;
             sends w' - w_k                                           `_client`
    server:  w <- w - server_optimizer(sum_k p_k (w' - w_k))           `_server`
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.averaging import Averaging, AveragingState, averaging
from fedjax_fm.algorithms.compressed import unbiased, without_memory
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.channels.eden import eden
from fedjax_fm.channels.payload import sent_if
from fedjax_fm.types import (
    Algorithm,
    Channel,
    ClientOutput,
    Exchange,
    Task,
    Tree,
    Unbilled,
)


class DoCoFlState(NamedTuple):
    """Server state.

    Attributes:
      delta: w.
      anchor: payload of y.
      correction: payload of w - y.
      version: i32[], anchors made before this one.
      age: i32[], rounds since y was made.
      optimizer: the server optimizer's state.
      key: of the channels.
    """

    delta: Tree
    anchor: Any
    correction: Any
    version: jax.Array
    age: jax.Array
    optimizer: Any
    key: jax.Array


class Message(NamedTuple):
    """What one client fetches."""

    anchor: Any  # leaves `Rows` of one row, which a client that holds it is not sent
    correction: Any
    version: Any  # i32[], unbilled


class _DoCoFl(NamedTuple):
    """The hyper-parameters of `docofl`, checked."""

    average: Averaging
    anchor: Channel
    correction: Channel
    every: int


def docofl(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    anchor: Channel | None = None,
    correction: Channel | None = None,
    every: int = 10,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averaging whose model travels down as an anchor and a correction.

    What a client trains is unbiased for w, with the error of the correction, of a vector
    that is small while the model moves slowly. With `channels.identity()` for both it is
    FedAvg, up to the rounding of y + (w - y).

    Sends: down the correction to everyone, and the anchor to those who do not hold it
    yet: once a client and anchor. Up the update as it is; `uplink` compresses it. A
    client keeps the payload of its anchor, which the simulation holds once for all of
    them, and its number; a `downlink` beside this method is refused.

    Metrics: `anchors_fetched`, the share of the cohort that fetched an anchor, which a
    deployment does before the round.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round, or a function of the round.
      server_optimizer: applied to the mean of (start - end); None means
        `optax.sgd(1.0)`.
      anchor: C_a, without a memory, biased or not; None: `channels.eden(4)`.
      correction: C_c, unbiased, without a memory; None: `channels.eden(2)`.
      every: rounds between anchors, at least 1.
      weighted: whether clients count by their examples, as in FedAvg; False: all the
        same, as in the paper.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `DoCoFlState`; clients keep the number of their
      anchor, i32[], -1 at first.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a channel
        with a memory, or a correction that is biased.

    References:
      Dorfman et al. 2023, arXiv 2302.00543, algorithm 1.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> channels = ffm.channels
      >>> how = {"anchor": channels.identity(), "correction": channels.natural()}
      >>> how |= {"every": 2, "local_steps": 1, "batch_size": 1}
      >>> method = docofl(task, optax.sgd(0.5), **how)
      >>> population = ffm.Population.from_clients([{"x": jnp.array([4.0])}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 4)
      >>> metrics["downlink_bytes"].tolist()  # 4 bytes an anchor, 2 a correction
      [6, 2, 6, 2]
    """
    average = averaging(
        task,
        client_optimizer,
        server_optimizer,
        weighted=weighted,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    anchor = eden(4) if anchor is None else anchor
    correction = eden(2) if correction is None else correction
    why = "so that what clients train is unbiased for the model"
    method = _DoCoFl(
        average=average,
        anchor=without_memory("docofl, anchor", anchor),
        correction=unbiased("docofl, correction", correction, why),
        every=checks.whole("every", every, least=1),
    )
    exchange = Exchange(
        broadcast=_broadcast,
        client=partial(_client, method),
        server=partial(_server, method),
        reduce=weighted_mean(),
        batches=average.local.batches,
        address=_address,
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(exchange,),
        client_init=lambda delta, key: jnp.int32(-1),
    )


def _init(method: _DoCoFl, delta, key, setting) -> DoCoFlState:
    """The first anchor is the first model."""
    key = stream(key, Stream.ENCODE)
    anchor, _ = method.anchor.encode(method.anchor.init(delta), delta, key)
    return DoCoFlState(
        delta=delta,
        anchor=anchor,
        correction=_correction(method, delta, anchor, key),
        version=jnp.int32(0),
        age=jnp.int32(0),
        optimizer=method.average.optimizer.init(delta),
        key=key,
    )


def _correction(method: _DoCoFl, delta, anchor, key) -> Any:
    """C_c(w - y)."""
    change = trees.subtract(delta, method.anchor.decode(anchor))
    state = method.correction.init(change)
    return method.correction.encode(state, change, jax.random.fold_in(key, 1))[0]


def _broadcast(state: DoCoFlState) -> Message:
    """All that `_address` reads."""
    return Message(state.anchor, state.correction, Unbilled(state.version))


def _address(message: Message, held, client) -> Message:
    """The anchor for those only who do not hold it."""
    anchor = sent_if(held != message.version, message.anchor)
    return Message(anchor, message.correction, Unbilled(message.version))


def _client(method: _DoCoFl, backbone, message: Message):
    """The model y + C_c(w - y), decoded once for all clients."""
    held = method.anchor.decode(message.anchor)
    start = trees.add(held, method.correction.decode(message.correction))

    def one(own, state, data, key):
        update, metrics = method.average.update(start, backbone, data, key)
        fetched = (state != own.version).astype(jnp.float32)
        return ClientOutput(
            upload=update,
            weight=method.average.weight(data),
            state=own.version,
            metrics={**metrics, "anchors_fetched": (fetched, jnp.float32(1))},
        )

    return one


def _server(method: _DoCoFl, state: DoCoFlState, aggregate, key):
    """The step, then what the next round sends."""
    before = AveragingState(state.delta, state.optimizer)
    delta, moments = method.average.stepped(before, aggregate.value)
    after = _messages(method, state, delta)
    return after._replace(optimizer=moments), {}


def _messages(method: _DoCoFl, state: DoCoFlState, delta: Tree) -> DoCoFlState:
    """The state with a new model, a new correction and, when it is time, a new anchor."""
    key, own = jax.random.split(state.key)
    is_due = state.age + 1 >= method.every

    def renewed():
        return method.anchor.encode(method.anchor.init(delta), delta, own)[0]

    anchor = jax.lax.cond(is_due, renewed, lambda: state.anchor)
    return state._replace(
        delta=delta,
        anchor=anchor,
        correction=_correction(method, delta, anchor, own),
        version=state.version + is_due.astype(jnp.int32),
        age=jnp.where(is_due, 0, state.age + 1),
        key=key,
    )
