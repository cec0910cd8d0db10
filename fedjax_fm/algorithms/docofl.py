"""DoCoFL: Downlink Compression for Cross-Device Federated Learning.

Dorfman, Vargaftik, Ben-Itzhak, Levy, 2023, arXiv 2302.00543, algorithm 1. Every few
rounds the server makes an anchor y of the model; clients fetch it ahead of time, and
what they wait for when a round starts is a correction of few bits:

    server:  y <- C_a(w) every `every` rounds;  sends C_c(w - y)       `with_messages`
    client:  w' = y + C_c(w - y);  w_k <- w';  local steps;
             sends w' - w_k                                           `_client`
    server:  w <- w - server_optimizer(sum_k p_k (w' - w_k))           `_server`
"""

from functools import partial

import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.averaging import AveragingState, averaging
from fedjax_fm.algorithms.compressed import unbiased, without_memory
from fedjax_fm.algorithms.docofl_messages import (
    DoCoFl,
    DoCoFlState,
    Message,
    address,
    broadcast,
    init,
    with_messages,
)
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.channels.eden import eden
from fedjax_fm.types import (
    Algorithm,
    Channel,
    ClientOutput,
    Exchange,
    Task,
)


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
    method = DoCoFl(
        average=average,
        anchor=without_memory("docofl, anchor", anchor),
        correction=unbiased("docofl, correction", correction, why),
        every=checks.whole("every", every, least=1),
    )
    exchange = Exchange(
        broadcast=broadcast,
        client=partial(_client, method),
        server=partial(_server, method),
        reduce=weighted_mean(),
        batches=average.local.batches,
        address=address,
    )
    return Algorithm(
        init=partial(init, method),
        exchanges=(exchange,),
        client_init=lambda delta, key: jnp.int32(-1),
    )


def _client(method: DoCoFl, backbone, message: Message):
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


def _server(method: DoCoFl, state: DoCoFlState, aggregate, key):
    """The step, then what the next round sends."""
    before = AveragingState(state.delta, state.optimizer)
    delta, moments = method.average.stepped(before, aggregate.value)
    after = with_messages(method, state, delta)
    return after._replace(optimizer=moments), {}
