"""DIANA: Distributed Learning with Compressed Gradient Differences.

Mishchenko, Gorbunov, Takáč, Richtárik, 2019, arXiv 1901.09269, algorithm 1.

    client:  sends D_k = Q(g_k - h_k),  g_k its gradient at x,  Q unbiased
             h_k <- h_k + alpha D_k                                   `_client`
    server:  v <- beta v + h + mean_k D_k
             x <- prox(x - gamma v),  h <- h + alpha mean_k D_k       `_server`

What is compressed goes to zero, so that the error of Q does; h = mean_k h_k.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jax.core import Tracer

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.compressed import (
    arrived_decoded,
    counts_once,
    encoded,
    positive,
    shown,
    unbiased,
)
from fedjax_fm.algorithms.everyone import meets_everyone
from fedjax_fm.algorithms.local_gradient import LocalGradient, local_gradient, zeros_of
from fedjax_fm.types import Algorithm, Channel, ClientOutput, Exchange, Task, Tree


class DianaState(NamedTuple):
    """Server state.

    Attributes:
      delta: x.
      shift: h, the mean of all clients' h_k.
      optimizer: v.
    """

    delta: Tree
    shift: Tree
    optimizer: Any


class _Diana(NamedTuple):
    """The hyper-parameters of `diana`, checked."""

    local: LocalGradient
    optimizer: optax.GradientTransformation
    channel: Channel
    shift_rate: float | None  # alpha
    prox: Callable[[Tree], Tree] | None

    def alpha(self, delta: Tree) -> Any:
        """The rate of the shifts, 1 / (1 + omega) unless another was given."""
        most = 1 / (1 + self.channel.law.omega(trees.size(delta)))
        if self.shift_rate is None:
            return most
        known = not isinstance(self.shift_rate, Tracer)
        if known and self.shift_rate > most * (1 + 1e-6):
            raise ValueError(
                f"expected shift_rate <= 1 / (1 + omega) = {most:.4g} for messages of "
                f"{trees.size(delta)} floats, got shift_rate={self.shift_rate}"
            )
        return self.shift_rate


def diana(
    task: Task,
    learning_rate: float,
    channel: Channel,
    *,
    momentum: float = 0.0,
    shift_rate: float | None = None,
    prox: Callable[[Tree], Tree] | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Gradient descent on compressed differences of gradients.

    With all of each client's data in its gradient (`epochs=1`) and a strongly convex
    loss, x goes to the optimum at a linear rate, however different the clients are;
    without the shifts it stays as far away as the variance of Q times the mean of
    ||grad f_k(x*)||^2 decides. Rates up to 1 / (L (1 + 6 omega / N)) are safe.

    Every client counts the same. Where some take part only, the step goes along h +
    mean_S D_k, and h by alpha |S| / N mean_S D_k, which keeps h = mean_k h_k.

    Sends: down x, up Q(g_k - h_k), the length of the channel's buffers. A client keeps
    h_k, a server h and v: each in float32 and as large as delta.

    Args:
      task: the loss.
      learning_rate: gamma, above 0.
      channel: Q, unbiased: `channels.ternary()` is the paper's with p = infinity. No
        `top_k`, whose bias the shifts do not take away (see `ef21`), and no
        `error_feedback`, as the shifts are the memory.
      momentum: beta, 0 <= beta < 1.
      shift_rate: alpha, 0 to 1 / (1 + omega), which None stands for; 0 leaves the
        shifts at zero: QSGD, TernGrad.
      prox: `x -> x`, the proximal step of a regulariser that is not smooth, for this
        learning rate.
      epochs: passes over which the gradient at x is taken, 1 for all of a client's
        data; give this or `local_steps`.
      local_steps: batches over which it is taken.
      batch_size: examples a batch.

    Returns:
      An algorithm whose server state is `DianaState` and whose clients keep h_k.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a channel
        that is biased or has a memory; later, a `shift_rate` that is too large for
        delta, or a sampler that never meets some clients.

    References:
      Mishchenko et al. 2019, arXiv 1901.09269, algorithm 1; Horváth et al. 2019, arXiv
      1904.05115, theorem 1, for alpha and gamma of any unbiased Q.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> method = diana(
      ...     task, 0.5, ffm.channels.natural(), epochs=1, batch_size=1
      ... )
      >>> clients = [{"x": jnp.array([x])} for x in (-3.0, 7.0)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 60)
      >>> round(float(state.delta), 4), [round(float(h), 3) for h in state.carry.clients]
      (2.0, [5.0, -5.0])
    """
    local = local_gradient(
        task, epochs=epochs, local_steps=local_steps, batch_size=batch_size
    )
    positive("learning_rate", learning_rate)
    checks.real("momentum", momentum, least=0, below=1)
    if shift_rate is not None:
        checks.real("shift_rate", shift_rate, least=0, most=1)
    if prox is not None and not callable(prox):
        raise TypeError(f"expected prox as a function x -> x, got prox={prox!r}")
    method = _Diana(
        local=local,
        optimizer=optax.sgd(learning_rate, momentum=momentum),
        channel=unbiased(
            "diana, channel", channel, "whose mistakes cancel in the mean"
        ),
        shift_rate=shift_rate,
        prox=prox,
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
        sampler=meets_everyone("DIANA", "the server's shift"),
    )


def _init(method: _Diana, delta, key, setting) -> DianaState:
    """The start; refuses a rate that is too large for the length of delta."""
    method.alpha(delta)
    return DianaState(delta, zeros_of(delta), method.optimizer.init(zeros_of(delta)))


def _client(method: _Diana, backbone, delta, shift, data, key) -> ClientOutput:
    """Q(g_k - h_k); the next shift follows what the server decoded."""
    gradient, metrics = method.local.at(delta, backbone, data, key)
    alpha = method.alpha(delta)

    def moved(sent):
        return _moved(shift, method.channel.decode(sent.payload), alpha)

    return ClientOutput(
        upload=encoded(method.channel, trees.subtract(gradient, shift), key),
        weight=shown(counts_once(data), gradient),
        state=moved,
        metrics=metrics,
    )


def _server(method: _Diana, state: DianaState, aggregate, key):
    """The step with the old shift, then the next one."""
    estimate = trees.add(state.shift, aggregate.value.mean)
    updates, moments = method.optimizer.update(estimate, state.optimizer)
    delta = optax.apply_updates(state.delta, updates)
    if method.prox is not None:
        delta = method.prox(delta)
    alpha = method.alpha(state.delta)
    shift = _moved(state.shift, aggregate.value.per_client, alpha)
    return DianaState(delta, shift, moments), {}


def _moved(shift: Tree, difference: Tree, alpha: Any) -> Tree:
    """The shift h + alpha D."""
    return jax.tree.map(lambda h, d: h + alpha * d, shift, difference)
