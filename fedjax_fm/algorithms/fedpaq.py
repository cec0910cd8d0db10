"""FedPAQ: Communication-Efficient Federated Learning with Averaging and Quantization.

Reisizadeh, Mokhtari, Hassani, Jadbabaie, Pedarsani, 2020, arXiv 1909.13014, algorithm 1.

    client:  w_k <- w;  local steps;  sends Q(w - w_k), Q unbiased    `_client`
    server:  w <- w - server_optimizer(sum_k p_k Q(w - w_k))          `Averaging.server`

The difference is quantised, never the model.
"""

from functools import partial
from typing import NamedTuple

import optax

from fedjax_fm.algorithms.averaging import Averaging, averaging
from fedjax_fm.algorithms.compressed import encoded, mean_decoded, shown, unbiased
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.channels.quantize import quantize
from fedjax_fm.types import Algorithm, Channel, ClientOutput, Exchange, Task


class _FedPaq(NamedTuple):
    """The hyper-parameters of `fedpaq`, checked."""

    average: Averaging
    channel: Channel


def fedpaq(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    channel: Channel | None = None,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Periodic averaging of quantised updates.

    Given the clients' results, the mean is that of FedAvg in expectation, and its
    variance is sum_k p_k^2 Var Q(w - w_k): every client rounds by a key of its own.

    Sends: down w, up Q(w - w_k), the length of the channel's buffers. One step of the
    whole of each client's data is QSGD; `channels.identity()` gives FedAvg.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round, or a function of the round.
      server_optimizer: applied to the mean of what arrived; None means
        `optax.sgd(1.0)`.
      channel: Q, unbiased; None: `channels.quantize(4, norm="l2", bucket_size=None)`,
        the paper's with 7 levels.
      weighted: whether p_k is the client's share of examples, as in FedAvg; False: the
        plain mean of the paper, whose clients have equally many.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `AveragingState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a channel
        that is biased or keeps a memory.

    References:
      Reisizadeh et al. 2020, arXiv 1909.13014, algorithm 1 and assumption 1.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> channel = ffm.channels.quantize(8)
      >>> method = fedpaq(
      ...     task, optax.sgd(0.5), channel=channel, local_steps=1, batch_size=2
      ... )
      >>> clients = [{"x": jnp.array([0.0, 2.0])}, {"x": jnp.array([3.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> round(float(state.delta), 4), metrics["uplink_bytes"].tolist()
      (0.8333, [10])
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
    if channel is None:
        channel = quantize(4, norm="l2", bucket_size=None)
    method = _FedPaq(
        average=average,
        channel=unbiased("fedpaq, channel", channel, "as its rounding is never undone"),
    )
    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=lambda backbone, message: partial(_client, method, backbone),
        server=average.server,
        reduce=mean_decoded(method.channel),
        batches=average.local.batches,
    )
    return Algorithm(init=average.init, exchanges=(exchange,))


def _client(method: _FedPaq, backbone, delta, state, data, key) -> ClientOutput:
    """Q(w - w_k)."""
    update, metrics = method.average.update(delta, backbone, data, key)
    return ClientOutput(
        upload=encoded(method.channel, update, key),
        weight=shown(method.average.weight(data), update),
        state=state,
        metrics=metrics,
    )
