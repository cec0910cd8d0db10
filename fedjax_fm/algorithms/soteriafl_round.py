"""A round of SoteriaFL, of the client and of the server.

    client:  sends v_k = C(u_k - s_k),  s_k <- s_k + gamma v_k            `client`
    server:  x <- x - eta (s + mean_k v_k),  s <- s + gamma mean_k v_k    `server`

Li, Zhao, Li, Chi, 2022, arXiv 2206.09888, algorithm 2.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.clipped_gradients import (
    Draw,
    Estimator,
    estimated,
    memory_of,
)
from fedjax_fm.algorithms.compressed import counts_once, encoded, shown
from fedjax_fm.algorithms.local import Sums
from fedjax_fm.algorithms.local_gradient import zeros_of
from fedjax_fm.algorithms.local_noise import LocalNoise
from fedjax_fm.algorithms.losses import check_trainable, masked_loss
from fedjax_fm.types import Channel, ClientOutput, Tree


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


class Soteria(NamedTuple):
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


# The client


def client_init(method: Soteria, delta, key) -> SoteriaClient:
    """`Algorithm.client_init`: no shift, and what the estimator remembers at first."""
    return SoteriaClient(zeros_of(delta), memory_of(method.estimator, delta))


def client(method: Soteria, backbone, delta, state, data, key) -> ClientOutput:
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
        weight=shown(counts_once(data), private),
        state=moved,
        metrics=_metrics(method, delta, draw),
    )


def _metrics(method: Soteria, delta, draw: Draw) -> Sums:
    """The loss and the task's metrics on the batch."""
    given = {"batch": draw.batch, "mask": draw.mask, "key": draw.key}
    return masked_loss(method.estimator.task, delta, draw.backbone, **given)[1]


# The server


def init(method: Soteria, delta, key, setting) -> SoteriaState:
    """`Algorithm.init`: no shift."""
    return SoteriaState(delta, zeros_of(delta), jnp.int32(0))


def server(method: Soteria, state: SoteriaState, aggregate, key):
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
