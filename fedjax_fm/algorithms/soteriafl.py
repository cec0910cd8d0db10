"""SoteriaFL: A Unified Framework for Private FL with Communication Compression.

Li, Zhao, Li, Chi, 2022, arXiv 2206.09888, algorithm 2, and its baseline CDP-SGD, algorithm 1.

    client:  g_k from clipped gradients of m examples                 `estimated`
             u_k = g_k + N(0, (z G / m)^2);  sends v_k = C(u_k - s_k)
             s_k <- s_k + gamma v_k                                   `_client`
    server:  x <- x - eta (s + mean_k v_k)
             s <- s + gamma mean_k v_k,  the old s in the step        `_server`

The estimators g_k are in `clipped_gradients`; CDP-SGD is sgd with gamma = 0. Each example
is clipped by itself: the authors' code clips the mean of a batch, which does not bound
what one example moves.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.clipped_gradients import (
    Draw,
    Estimator,
    estimated,
    memory_of,
)
from fedjax_fm.algorithms.compressed import (
    arrived_decoded,
    counts_once,
    encoded,
    positive,
    unbiased,
)
from fedjax_fm.algorithms.local import Sums
from fedjax_fm.algorithms.local_gradient import zeros_of
from fedjax_fm.algorithms.local_noise import (
    LocalNoise,
    check_no_weight,
    check_table,
    local_noise,
)
from fedjax_fm.algorithms.losses import check_trainable, checked, masked_loss
from fedjax_fm.privacy.examples import ESTIMATORS, LocalAccounting
from fedjax_fm.types import (
    Algorithm,
    Batches,
    Channel,
    ClientOutput,
    Exchange,
    Task,
    Tree,
)


class SoteriaState(NamedTuple):
    """Server state.

    Attributes:
      delta: x.
      shift: s, the mean of all clients' s_k.
      round: i32[].
    """

    delta: Tree
    shift: Tree
    round: jax.Array


class SoteriaClient(NamedTuple):
    """What a client keeps.

    Attributes:
      shift: s_k.
      memory: () for sgd, a `Snapshot` for svrg, for saga the table t, leaves
        [table_rows, ...].
    """

    shift: Tree
    memory: Any


class _Soteria(NamedTuple):
    """The hyper-parameters, checked."""

    estimator: Estimator
    learning_rate: float
    channel: Channel
    noise: LocalNoise
    shift_rate: float | None

    def gamma(self, delta: Tree) -> Any:
        """The rate of the shifts."""
        if self.shift_rate is not None:
            return self.shift_rate
        omega = self.channel.law.omega(trees.size(delta))
        return math.sqrt((1 + 2 * omega) / (2 * (1 + omega) ** 3))


def soteriafl(
    task: Task,
    learning_rate: float,
    channel: Channel,
    *,
    clip_norm: float,
    noise_multiplier: float,
    estimator: str = "sgd",
    shift_rate: float | None = None,
    snapshot_rate: float = 0.1,
    table_rows: int | None = None,
    index: str | None = None,
    accounting: LocalAccounting | None = None,
    batch_size: int,
) -> Algorithm:
    """Compressed gradients that every client makes private itself.

    The server sees noise from the first step on, so that nobody need be trusted. Every
    client counts the same; where some take part only, the shifts follow as in `diana`.
    Without noise and clip it is DIANA with alpha = gamma.

    Sends: down x, up C(u_k - s_k), the length of the channel's buffers. A client keeps
    s_k, for svrg two more of its size, for saga one gradient an example.

    Metrics: `epsilon` after each round, of an accounted method.

    Args:
      task: the loss; without `weight`, as each example counts the same.
      learning_rate: eta, above 0.
      channel: C, unbiased, without a memory, as the shifts are it.
      clip_norm: G, of each example's gradient, above 0; infinity for none (then
        noise_multiplier must be 0).
      noise_multiplier: z, deviation of the noise on the mean gradient in units of G / m;
        0 for none.
      estimator: "sgd", "svrg" or "saga".
      shift_rate: gamma, 0 to 1; None: sqrt((1 + 2 omega) / (2 (1 + omega)^3)).
      snapshot_rate: p of svrg, 0 < p <= 1.
      table_rows: of saga: examples of the largest client.
      index: of saga: the column that numbers a client's examples, integers from 0.
      accounting: the smallest client, rounds and delta that z is accounted for. A
        client with fewer examples then stops the run as not finite.
      batch_size: examples a round, m of them where a client has fewer.

    Returns:
      An algorithm whose server state is `SoteriaState` and whose clients keep a
      `SoteriaClient`.

    Formal guarantees:
      With noise and `accounting`, all that a client sends in `rounds` rounds is
      (epsilon, delta) differentially private for one of its examples replaced by
      another, with the epsilon of `privacy.local_spent`. The channel, the shifts and
      the server come after the noise and cost nothing. Not covered, as they leave no
      client in a deployment: `loss` and the task's metrics, `examples`, clients' states.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a channel
        that is biased or has a memory; arguments of an estimator that is not used.

    References:
      Li et al. 2022, arXiv 2206.09888, algorithm 2 (SoteriaFL), section 4; the authors'
      code, github.com/haoyuzhao123/soteriafl.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> accounting = ffm.privacy.LocalAccounting(n_examples=20, rounds=3, delta=1e-5)
      >>> how = {"clip_norm": 1.0, "noise_multiplier": 4.0, "batch_size": 5}
      >>> method = soteriafl(
      ...     task, 0.1, ffm.channels.natural(), **how, accounting=accounting
      ... )
      >>> population = ffm.Population.from_clients([{"x": jnp.ones(20)}] * 2)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 3)
      >>> metrics["uplink_bytes"].tolist(), bool(metrics["epsilon"][2] < 4)
      ([4, 4, 4], True)
    """
    checks.choice("estimator", estimator, ESTIMATORS)
    batches = Batches(batch_size, steps=1).checked()
    how = {"batch_size": batch_size, "estimator": estimator}
    noise = local_noise(noise_multiplier, clip_norm, accounting, **how)
    if shift_rate is not None:
        checks.real("shift_rate", shift_rate, least=0, most=1)
    checks.real("snapshot_rate", snapshot_rate, above=0, most=1)
    check_table(estimator, table_rows, index)
    check_no_weight(task)
    method = _Soteria(
        estimator=Estimator(
            task=checked(task),
            name=estimator,
            clip_norm=clip_norm,
            snapshot_rate=snapshot_rate,
            table_rows=table_rows,
            index=index,
        ),
        learning_rate=positive("learning_rate", learning_rate),
        channel=unbiased("soteriafl, channel", channel, "as its noise is never undone"),
        noise=noise,
        shift_rate=shift_rate,
    )
    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=lambda backbone, message: partial(_client, method, backbone),
        server=partial(_server, method),
        reduce=arrived_decoded(method.channel),
        batches=batches,
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(exchange,),
        client_init=partial(_client_init, method),
        privacy=noise.privacy,
    )


# The client


def _client_init(method: _Soteria, delta, key) -> SoteriaClient:
    return SoteriaClient(zeros_of(delta), memory_of(method.estimator, delta))


def _client(method: _Soteria, backbone, delta, state, data, key) -> ClientOutput:
    """C(u_k - s_k), u_k private; the next shift follows what the server decoded."""
    check_trainable(delta)
    batch, mask = data.batch(jnp.int32(0))
    draw = Draw(
        backbone=backbone,
        batch=batch,
        mask=mask,
        data=data,
        key=jax.random.fold_in(key, 0),
    )
    estimate, memory = estimated(method.estimator, delta, state.memory, draw)
    private = method.noise.added(estimate, mask, data, key)
    gamma = method.gamma(delta)

    def moved(sent):
        shift = _moved(state.shift, method.channel.decode(sent.payload), gamma)
        return SoteriaClient(shift, memory)

    return ClientOutput(
        upload=encoded(method.channel, trees.subtract(private, state.shift), key),
        weight=counts_once(data),
        state=moved,
        metrics=_metrics(method, delta, draw),
    )


def _metrics(method: _Soteria, delta, draw: Draw) -> Sums:
    """The loss and the task's metrics on the batch."""
    given = {"batch": draw.batch, "mask": draw.mask, "key": draw.key}
    return masked_loss(method.estimator.task, delta, draw.backbone, **given)[1]


# The server


def _init(method: _Soteria, delta, key, setting) -> SoteriaState:
    return SoteriaState(delta, zeros_of(delta), jnp.int32(0))


def _server(method: _Soteria, state: SoteriaState, aggregate, key):
    """The step with the old shift, then the next one."""
    estimate = trees.add(state.shift, aggregate.value.mean)

    def stepped(x, g):
        return (x - method.learning_rate * g).astype(x.dtype)

    after = SoteriaState(
        delta=jax.tree.map(stepped, state.delta, estimate),
        shift=_moved(
            state.shift, aggregate.value.per_client, method.gamma(state.delta)
        ),
        round=state.round + 1,
    )
    if not method.noise.epsilons:
        return after, {}
    spent = jnp.array(method.noise.epsilons, jnp.float32)
    return after, {"epsilon": spent[state.round]}


def _moved(shift: Tree, difference: Tree, gamma: Any) -> Tree:
    """The shift s + gamma v."""
    return jax.tree.map(lambda s, v: s + gamma * v, shift, difference)
