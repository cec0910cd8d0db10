"""EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback.

Richtárik, Sokolov, Fatkhullin, 2021, arXiv 2106.05203, algorithm 1; some of the clients:
Fatkhullin et al., 2021, arXiv 2110.03294, algorithm 4.

    client:  sends c_k = C(grad f_k(x) - g_k),  C contractive
             g_k <- g_k + c_k                                         `_client`
    server:  g <- g + 1/N sum_k c_k,  x <- x - gamma g                `_server`

All g_k begin at zero, so that they are C(grad f_k(x)) after the first round.
"""

from functools import partial
from typing import NamedTuple

import jax

from fedjax_fm import trees
from fedjax_fm.algorithms.compressed import (
    arrived_decoded,
    check_contracts,
    contractive,
    counts_once,
    encoded,
    positive,
    shown,
)
from fedjax_fm.algorithms.everyone import meets_everyone
from fedjax_fm.algorithms.local_gradient import LocalGradient, local_gradient, zeros_of
from fedjax_fm.types import Algorithm, Channel, ClientOutput, Exchange, Task, Tree


class Ef21State(NamedTuple):
    """Server state.

    Attributes:
      delta: x.
      gradient: g, the mean of all clients' g_k.
    """

    delta: Tree
    gradient: Tree


class _Ef21(NamedTuple):
    """The hyper-parameters of `ef21`, checked."""

    local: LocalGradient
    learning_rate: float
    channel: Channel


def ef21(
    task: Task,
    learning_rate: float,
    channel: Channel,
    *,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Gradient descent with a contractive compressor of gradient differences.

    With all of each client's data in its gradient (`epochs=1`) and a strongly convex
    loss, x goes to the optimum at a linear rate, where `top_k` without a memory stalls
    or diverges. Rates up to 1 / (L + L_k sqrt(b / t)) are safe, L_k the root mean square
    of the clients' smoothness, t = 1 - sqrt(1 - delta), b = (1 - delta) / t.

    Every client counts the same, and g = mean_k g_k over the whole population also where
    some take part only.

    Sends: down x, up C(grad f_k(x) - g_k), the length of the channel's buffers. A
    client keeps g_k, the server g: each in float32 and as large as delta.

    Args:
      task: the loss.
      learning_rate: gamma, above 0.
      channel: C, contractive and in general biased: `channels.top_k(0.01)`, `sign()`,
        chains of them, or an unbiased one of variance below 1. No `error_feedback`,
        which it takes the place of.
      epochs: passes over which the gradient at x is taken, 1 for all of a client's
        data; give this or `local_steps`.
      local_steps: batches over which it is taken.
      batch_size: examples a batch.

    Returns:
      An algorithm whose server state is `Ef21State` and whose clients keep g_k.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a channel
        with a memory, or of which nothing is known; later, one that does not contract
        messages of the length of delta, or a sampler that never meets some clients.

    References:
      Richtárik et al. 2021, arXiv 2106.05203, algorithm 1, theorem 1; Fatkhullin et al.
      2021, arXiv 2110.03294, algorithm 4.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return jax.numpy.sum((w - batch["x"]) ** 2, axis=-1) / 2, {}
      >>> channel = ffm.channels.top_k(0.5)
      >>> method = ef21(Task(loss), 0.2, channel, epochs=1, batch_size=1)
      >>> clients = [{"x": jnp.array([x])} for x in ([1.0, 5.0], [3.0, -1.0])]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.zeros(2)), 200)
      >>> state.delta.round(4).tolist(), metrics["uplink_bytes"][0].tolist()
      ([2.0, 2.0], 10)
    """
    local = local_gradient(
        task, epochs=epochs, local_steps=local_steps, batch_size=batch_size
    )
    method = _Ef21(
        local=local,
        learning_rate=positive("learning_rate", learning_rate),
        channel=contractive("ef21, channel", channel),
    )
    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=lambda backbone, message: partial(_client, method, backbone),
        server=partial(_server, method),
        reduce=arrived_decoded(method.channel),
        batches=local.batches,
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(exchange,),
        client_init=lambda delta, key: zeros_of(delta),
        sampler=meets_everyone("EF21", "the server's gradient"),
    )


def _init(method: _Ef21, delta, key, setting) -> Ef21State:
    """The start; refuses a channel that does not contract messages of this length."""
    check_contracts("ef21, channel", method.channel, trees.size(delta))
    return Ef21State(delta, zeros_of(delta))


def _client(method: _Ef21, backbone, delta, known, data, key) -> ClientOutput:
    """C(grad f_k(x) - g_k); g_k follows what the server decoded."""
    gradient, metrics = method.local.at(delta, backbone, data, key)

    def followed(sent):
        return trees.add(known, method.channel.decode(sent.payload))

    return ClientOutput(
        upload=encoded(method.channel, trees.subtract(gradient, known), key),
        weight=shown(counts_once(data), gradient),
        state=followed,
        metrics=metrics,
    )


def _server(method: _Ef21, state: Ef21State, aggregate, key):
    """The next g, and the step along it."""
    gradient = trees.add(state.gradient, aggregate.value.per_client)

    def stepped(x, g):
        return (x - method.learning_rate * g).astype(x.dtype)

    delta = jax.tree.map(stepped, state.delta, gradient)
    return Ef21State(delta, gradient), {}
