"""The first exchange of FedLin's rounds: the mean gradient at x.

    client:  h_k = C(r_k + grad f_k(x)),  r_k <- r_k + grad f_k(x) - h_k
    server:  g = C_s(e + mean_k h_k),     e <- e + mean_k h_k - g

Mitra, Jaafar, Pappas, Hassani, 2021, arXiv 2102.07053 (NeurIPS), algorithm 1.
"""

from functools import partial
from typing import Any, NamedTuple

import jax

from fedjax_fm import trees
from fedjax_fm.algorithms.compressed import counts_once, encoded, mean_decoded, shown
from fedjax_fm.algorithms.local import client_weight as examples_of
from fedjax_fm.algorithms.local_gradient import LocalGradient, zeros_of
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.channels.identity import identity
from fedjax_fm.types import Batches, Channel, ClientOutput, Exchange, Tree


class FedLinState(NamedTuple):
    """Server state.

    Attributes:
      delta: x.
      gradient: g of the newest round, as its channel wrote it.
      residual: e, what the server's channel has not sent yet; () without one.
    """

    delta: Tree
    gradient: Any
    residual: Tree


class FedLin(NamedTuple):
    """The hyper-parameters of `fedlin`, checked."""

    local: LocalGradient  # its batches are those of the local steps
    learning_rate: float
    client_channel: Channel | None
    server_channel: Channel | None
    weighted: bool
    divided: bool

    @property
    def downlink(self) -> Channel:
        """What writes g."""
        return self.server_channel or identity()

    def weight(self, data) -> jax.Array:
        """What a client counts in both means."""
        return (
            examples_of(self.local.task, data) if self.weighted else counts_once(data)
        )


def no_residual(channel: Channel | None, delta: Tree) -> Tree:
    """What is left to send at first: zeros, or () without a channel.

    Args:
      channel: that leaves something, or None.
      delta: floating leaves.
    """
    return () if channel is None else zeros_of(delta)


def gradients(method: FedLin) -> Exchange:
    """The exchange that ends with g at the server.

    Args:
      method: its hyper-parameters.
    """
    channel, batches = method.client_channel, method.local.batches
    return Exchange(
        broadcast=lambda state: state.delta,
        client=lambda backbone, message: partial(_gradient, method, backbone),
        server=partial(_server_gradient, method),
        reduce=weighted_mean() if channel is None else mean_decoded(channel),
        batches=Batches(batches.batch_size, epochs=1),
    )


def _gradient(method: FedLin, backbone, delta, residual, data, key) -> ClientOutput:
    """h_k = C(r_k + grad f_k(x)), the gradient over all of the client's data."""
    gradient, _ = method.local.at(delta, backbone, data, key)
    weight, channel = method.weight(data), method.client_channel
    if channel is None:
        return ClientOutput(upload=gradient, weight=weight, state=residual)
    wanted = trees.add(residual, gradient)

    def left(sent):
        return trees.subtract(wanted, channel.decode(sent.payload))

    return ClientOutput(
        upload=encoded(channel, wanted, key),
        weight=shown(weight, wanted),
        state=left,
    )


def _server_gradient(method: FedLin, state: FedLinState, aggregate, key):
    """G = C_s(e + mean_k h_k)."""
    if method.server_channel is None:
        gradient = encoded(identity(), aggregate.value, key).payload
        return state._replace(gradient=gradient), {}
    wanted = trees.add(state.residual, aggregate.value)
    gradient = encoded(method.downlink, wanted, key).payload
    residual = trees.subtract(wanted, method.downlink.decode(gradient))
    return state._replace(gradient=gradient, residual=residual), {}
