"""FedLin: Linear Convergence in Federated Learning.

Mitra, Jaafar, Pappas, Hassani, 2021, arXiv 2102.07053 (NeurIPS), algorithm 1. A round is
two exchanges; C and C_s may be the identity, r_k and e begin at zero:

    gradients
        client:  h_k = C(r_k + grad f_k(x)),  r_k <- r_k + grad f_k(x) - h_k
        server:  g = C_s(e + mean_k h_k),     e <- e + mean_k h_k - g
    steps
        client:  y <- x;  y <- y - eta_k (grad f_k(y) - grad f_k(x) + g)
        server:  x <- x - mean_k (x - y_k)

The paper ends a round with the gradients of the next; here they come first, so that the
first round has them, too.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.compressed import (
    Encoded,
    check_contracts,
    contractive,
    encoded,
    marked,
    positive,
)
from fedjax_fm.algorithms.fedlin_gradients import (
    FedLin,
    FedLinState,
    gradients,
    no_residual,
)
from fedjax_fm.algorithms.local import train
from fedjax_fm.algorithms.local_gradient import local_gradient, zeros_of
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.types import (
    Algorithm,
    Channel,
    ClientOutput,
    Exchange,
    Task,
    Tree,
    Unbilled,
)


class Message(NamedTuple):
    """What is sent for the local steps."""

    delta: Any  # x, which the client has of the first exchange
    gradient: Encoded


def fedlin(
    task: Task,
    learning_rate: float,
    *,
    client_channel: Channel | None = None,
    server_channel: Channel | None = None,
    weighted: bool = True,
    divided: bool = False,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Local steps along corrected gradients, whose fixed point is the optimum.

    At the optimum g is zero and every local step is zero, however many there are, which
    is not so for FedAvg on clients of different curvature. One step a round is gradient
    descent. With a `server_channel` alone x still goes to the optimum; with a
    `client_channel` to a neighbourhood of it, unless the clients' gradients vanish
    there. Local steps on part of the data correct each batch by its own gradient at x.

    Sends: down x and C_s(g), up h_k and x - y_k. Without its own channels both go
    through the simulator's `uplink`; there is no `downlink` beside this method, as the
    client needs the x that the server has.

    Args:
      task: the loss.
      learning_rate: eta_k of every client's steps, above 0; see `divided`.
      client_channel: C of the clients' gradients, contractive, without a memory, as
        r_k is it; None sends them as they are.
      server_channel: C_s of the mean gradient, likewise.
      weighted: whether clients count by their examples, as in FedAvg; False: all the
        same, as in the paper.
      divided: whether eta_k = learning_rate / (steps of the client), as in the paper's
        theorems, where clients take different numbers of steps.
      epochs: full passes of local steps; give this or `local_steps`. The gradients at x
        are over all of a client's data in either case.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedLinState`; clients keep r_k, or nothing
      without a `client_channel`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a channel
        with a memory, or of which nothing is known; later, one that does not contract
        messages of the length of delta.

    References:
      Mitra et al. 2021, arXiv 2102.07053, algorithm 1, theorems 1, 4 and 5.

    Example:
      Two clients of curvatures 1 and 3:

      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return batch["h"] * (w - batch["a"]) ** 2 / 2, {}
      >>> method = fedlin(Task(loss), 0.1, local_steps=4, batch_size=1)
      >>> clients = [
      ...     {"a": jnp.array([a]), "h": jnp.array([h])}
      ...     for a, h in ((0.0, 1.0), (4.0, 3.0))
      ... ]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 60)
      >>> round(float(state.delta), 4), metrics["downlink_bytes"][0].tolist()
      (3.0, 16)
    """
    local = local_gradient(
        task, epochs=epochs, local_steps=local_steps, batch_size=batch_size
    )
    if client_channel is not None:
        contractive("fedlin, client_channel", client_channel)
    if server_channel is not None:
        contractive("fedlin, server_channel", server_channel)
    method = FedLin(
        local=local,
        learning_rate=positive("learning_rate", learning_rate),
        client_channel=client_channel,
        server_channel=server_channel,
        weighted=checks.flag("weighted", weighted),
        divided=checks.flag("divided", divided),
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(gradients(method), _steps(method)),
        client_init=partial(_client_init, method),
    )


def _init(method: FedLin, delta, key, setting) -> FedLinState:
    """The start; refuses channels that do not contract messages of this length."""
    n = trees.size(delta)
    for name in ("client_channel", "server_channel"):
        channel = getattr(method, name)
        if channel is not None:
            check_contracts(f"fedlin, {name}", channel, n)
    nothing = encoded(method.downlink, zeros_of(delta), key)
    residual = no_residual(method.server_channel, delta)
    return FedLinState(delta, nothing.payload, residual)


def _client_init(method: FedLin, delta, key) -> Tree:
    return no_residual(method.client_channel, delta)


# The local steps


def _steps(method: FedLin) -> Exchange:
    """The exchange of the local steps."""
    return Exchange(
        broadcast=_broadcast,
        client=partial(_client, method),
        server=_server,
        reduce=weighted_mean(),
        batches=method.local.batches,
    )


def _broadcast(state: FedLinState) -> Message:
    """C_s(g), marked so that no downlink encodes it again; x is known."""
    return Message(Unbilled(state.delta), marked(state.gradient))


def _client(method: FedLin, backbone, message: Message):
    """The local steps; g is decoded once for all clients."""
    mean = method.downlink.decode(message.gradient.payload)
    task, start = method.local.task, message.delta

    def loss(delta, backbone, batch, mask, key):
        return masked_loss(task, delta, backbone, batch=batch, mask=mask, key=key)

    def corrected(delta, backbone, batch, mask, key):
        """The gradient at y, less that of the same batch at x, plus g."""
        gradient = jax.grad(loss, has_aux=True)
        here, sums = gradient(delta, backbone, batch, mask, key)
        there, _ = gradient(start, backbone, batch, mask, key)
        return trees.add(trees.subtract(here, there), mean), sums

    def one(message, residual, data, key):
        rate = method.learning_rate
        if method.divided:
            rate = rate / jnp.maximum(data.n_steps, 1)
        walk = (task, optax.sgd(rate), start, backbone, data, key)
        trained, metrics = train(*walk, gradient=corrected)
        return ClientOutput(
            upload=trees.subtract(start, trained),
            weight=method.weight(data),
            state=residual,
            metrics=metrics,
        )

    return one


def _server(state: FedLinState, aggregate, key):
    """The mean of the clients' results."""
    moved = jax.tree.map(jnp.negative, aggregate.value)
    return state._replace(delta=optax.apply_updates(state.delta, moved)), {}
