"""FedOBD: Opportunistic Block Dropout for Efficiently Training Large-scale Neural Networks.

Chen, Chen, Wu, Yu, 2023, arXiv 2208.05174, algorithm 1. N is NNADQ, D(x) sends the blocks
of x that changed most and quantises them by N (`channels.block_dropout`):

    stage 1, some clients and several local epochs a round
        server:  sends N(w)
        client:  w_k <- N(w);  local epochs;  sends D(N(w) - w_k)     `_client`
        server:  w <- w - server_optimizer(sum_k p_k D(N(w) - w_k))   `Averaging.server`
    stage 2, all clients and one local epoch a round: the same with N in the place of D

A block that was dropped counts as unchanged.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.averaging import Averaging, AveragingState, averaging
from fedjax_fm.algorithms.compressed import (
    Encoded,
    encoded,
    marked,
    mean_decoded,
    shown,
)
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.channels.block_dropout import block_dropout
from fedjax_fm.types import Algorithm, Channel, ClientOutput, Exchange, Task


class _FedObd(NamedTuple):
    """The hyper-parameters of a stage, checked."""

    average: Averaging
    up: Channel
    down: Channel
    everyone: bool  # stage 2


def fedobd(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    dropped: float = 0.3,
    quantizer_weight: float = 1e-3,
    blocks: Callable[[str], str] | None = None,
    stacked: str | None = None,
    score: str = "norm",
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Stage 1 of FedOBD: averaging of the blocks that changed most, quantised.

    Sends: down the whole model by NNADQ, up the kept blocks of the update, at most 1 -
    dropped of the entries; the data decide the bits. `fedobd_second_stage` goes on with
    all clients. With dropped=0 and a quantizer_weight near zero it is FedAvg.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round, or a function of the round.
      server_optimizer: applied to the mean of what arrived; None means
        `optax.sgd(1.0)`.
      dropped: lambda, the least share of the entries that is not sent up, 0 <= lambda <
        1.
      quantizer_weight: NNADQ's price of a bit against error, above 0; the authors take
        1e-3 for images and 1e-4 for texts.
      blocks: `dotted path of a leaf -> name of its block`; None: its module.
      stacked: regular expression of leaves whose first axis counts layers, as in this
        package's models; each layer is a block then.
      score: of a block: "norm", the l2 norm of its change over its size (the authors'
        code), or "mean", its mean magnitude.
      weighted: whether clients count by their examples, as in FedAvg; False: all the
        same.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `AveragingState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, no
        block is small enough to be sent.

    References:
      Chen et al. 2023, arXiv 2208.05174, algorithm 1; the authors' code,
      github.com/cyyever/distributed_learning_simulator.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w["a"] + w["b"] - batch["x"]) ** 2, axis=-1), {}
      >>> how = {"dropped": 0.5, "blocks": str, "local_steps": 1, "batch_size": 2}
      >>> method = fedobd(Task(loss), optax.sgd(0.1), **how)
      >>> population = ffm.Population.from_clients([{"x": jnp.ones((2, 3))}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> delta = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
      >>> state, metrics = simulator.run(simulator.init(delta), 1)
      >>> [round(float(x), 4) for x in (state.delta["a"][0], state.delta["b"][0])]
      [0.2, 0.0]
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
    how = {"blocks": blocks, "stacked": stacked, "score": score}
    weight = checks.real("quantizer_weight", quantizer_weight, above=0)
    up, down = block_dropout(dropped, weight, **how), block_dropout(0, weight, **how)
    return _stage(_FedObd(average=average, up=up, down=down, everyone=False))


def fedobd_second_stage(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    rounds_before: int,
    quantizer_weight: float = 1e-3,
    stacked: str | None = None,
    weighted: bool = True,
    batch_size: int,
) -> Algorithm:
    """Stage 2 of FedOBD: all clients, one epoch a round, no block dropped.

    Starts with `simulator.init(state.delta)` of the state that stage 1 ended with.

    Sends: the whole model down and the whole update up, both by NNADQ.

    Args:
      task: the loss.
      client_optimizer: of stage 1; a function of the round goes on with round
        `rounds_before`, so that a schedule does not start again.
      server_optimizer: applied to the mean of what arrived; None means
        `optax.sgd(1.0)`.
      rounds_before: of stage 1, at least 0.
      quantizer_weight: NNADQ's price of a bit against error, above 0.
      stacked: regular expression of leaves whose first axis counts layers; each layer
        is quantised by itself.
      weighted: whether clients count by their examples.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `AveragingState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, a
        cohort that is not the whole population.

    References:
      Chen et al. 2023, arXiv 2208.05174, algorithm 1, lines 14 to 22.

    Example:
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
      >>> method = fedobd_second_stage(
      ...     task, optax.sgd(0.1), rounds_before=100, batch_size=8
      ... )
    """
    checks.client_optimizer("client_optimizer", client_optimizer)
    before = checks.whole("rounds_before", rounds_before, least=0)
    weight = checks.real("quantizer_weight", quantizer_weight, above=0)
    average = averaging(
        task,
        _later(client_optimizer, before),
        server_optimizer,
        weighted=weighted,
        epochs=1,
        batch_size=batch_size,
    )
    channel = block_dropout(0, weight, stacked=stacked)
    return _stage(_FedObd(average=average, up=channel, down=channel, everyone=True))


def _later(optimizer: ClientOptimizer, rounds: int) -> ClientOptimizer:
    """The optimizer of later rounds."""
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    return lambda round_index: optimizer(round_index + rounds)


def _stage(method: _FedObd) -> Algorithm:
    """The rounds of one stage."""
    exchange = Exchange(
        broadcast=partial(_broadcast, method),
        client=partial(_client, method),
        server=method.average.server,
        reduce=mean_decoded(method.up),
        batches=method.average.local.batches,
    )
    return Algorithm(init=partial(_init, method), exchanges=(exchange,))


def _init(method: _FedObd, delta, key, setting) -> AveragingState:
    """The start; stage 2 is for all clients."""
    if method.everyone and setting.cohort_size != setting.n_clients:
        raise ValueError(
            "the second stage of FedOBD is for all clients: expected cohort_size="
            f"{setting.n_clients}, got cohort_size={setting.cohort_size}"
        )
    return method.average.init(delta, key, setting)


def _broadcast(method: _FedObd, state: AveragingState) -> Encoded:
    """N(w), which draws nothing from a key."""
    payload, _ = method.down.encode((), state.delta, jax.random.key(0))
    return marked(payload)


def _client(method: _FedObd, backbone, message: Encoded):
    """The model is decoded once for all clients."""
    start = method.down.decode(message.payload)

    def one(message, state, data, key):
        update, metrics = method.average.update(start, backbone, data, key)
        return ClientOutput(
            upload=encoded(method.up, update, key),
            weight=shown(method.average.weight(data), update),
            state=state,
            metrics=metrics,
        )

    return one
