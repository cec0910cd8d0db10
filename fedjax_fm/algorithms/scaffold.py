"""SCAFFOLD: Stochastic Controlled Averaging for Federated Learning.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, 2019, arXiv 1910.06378, algorithm 1.

    client:  y <- y - eta (g(y) - c_k + c)  for K local steps from x             (3)
             c_k+ = grad f_k(x)                                         (4) option I
             c_k+ = c_k - c + (x - y) / (K eta)                        (4) option II
             sends y - x and c_k+ - c_k
    server:  x <- x + eta_s mean_S (y - x),  c <- c + |S|/N mean_S (c_k+ - c_k)   (5)
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.everyone import meets_everyone
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    LocalTraining,
    local_training,
    optimizer_of,
)
from fedjax_fm.algorithms.parts import Stream, in_f32, stream
from fedjax_fm.algorithms.passes import gradient_over, passes_over
from fedjax_fm.algorithms.recording import recording
from fedjax_fm.algorithms.reduce import mean_and_share
from fedjax_fm.types import Algorithm, ClientData, ClientOutput, Exchange, Task, Tree

Option = Literal["I", "II"]


class ScaffoldState(NamedTuple):
    """Server state."""

    delta: Tree  # x
    control: Tree  # c
    optimizer: Any


class Both(NamedTuple):
    """What travels: down x and c, up x - y and c_k+ - c_k."""

    delta: Tree
    control: Tree


def scaffold(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    option: Option = "II",
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg whose local steps are corrected by control variates.

        y <- y - eta (g(y) - c_k + c)

    Every client counts the same, as in the paper. It converges to the optimum of the
    plain mean of the f_k, however different they are and however many local steps there
    are. c = mean_k c_k over all N clients, at all times and behind any uplink.

    Sends: two trees of the size of delta each way. Memory: one tree a client.

    Option II is computed as the mean of the gradients along the steps, which is
    (x - y) / (K eta) + c_k - c for SGD at any rate or schedule, and stays in the
    gradient's units for other optimizers.

    A client that the sampler never draws keeps c_k = 0 and counts in c. A sampler that
    always draws the same part of the clients is refused.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      server_optimizer: of x, on the mean of x - y; None means `optax.sgd(1.0)`, and
        `optax.sgd(eta_s)` is the paper's.
      option: "II", or "I" for the gradient of all of a client's examples at x, which
        costs another pass.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `ScaffoldState`; a client's state is its c_k.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, the
        sampler never meets some clients.

    References:
      Karimireddy et al. 2019, arXiv 1910.06378, algorithm 1, equations (3) to (5).

    Example:
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):  # curvatures differ, and so do minima
      ...     return batch["h"] * (w - batch["x"]) ** 2 / 2, {}
      >>> method = scaffold(Task(loss), optax.sgd(0.2), local_steps=5, batch_size=1)
      >>> clients = [{"h": jnp.array([h]), "x": jnp.array([h])} for h in (1.0, 3.0)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 40)
      >>> round(float(state.delta), 4)  # (1 * 1 + 3 * 3) / (1 + 3); FedAvg: 2.192
      2.5
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    ).with_optimizer(recording)
    checks.server_optimizer("server_optimizer", server_optimizer)
    checks.choice("option", option, ("I", "II"))
    optimizer = server_optimizer or optax.sgd(1.0)

    def init(delta, key, setting):
        zeros = jax.tree.map(jnp.zeros_like, delta)
        return ScaffoldState(delta, zeros, optimizer.init(in_f32(delta)))

    def client_init(delta, key):
        return jax.tree.map(jnp.zeros_like, delta)

    def client(backbone, message):
        def one(message, own, data, key):
            return _client(local, option, backbone, message, own, data=data, key=key)

        return one

    def server(state, aggregate, key):
        mean, share = aggregate.value
        updates, moments = optimizer.update(
            mean.delta, state.optimizer, in_f32(state.delta)
        )
        delta = optax.apply_updates(state.delta, updates)
        steps = jax.tree.map(lambda d: share * d, mean.control)
        control = optax.apply_updates(state.control, steps)
        return ScaffoldState(delta, control, moments), {}

    exchange = Exchange(
        broadcast=lambda state: Both(state.delta, state.control),
        client=client,
        server=server,
        reduce=mean_and_share(),
        batches=local.batches,
    )
    return Algorithm(
        init=init,
        exchanges=(exchange,),
        client_init=client_init,
        sampler=meets_everyone("SCAFFOLD", "the server's control variate"),
    )


def _client(
    local: LocalTraining,
    option: Option,
    backbone: Tree,
    message: Both,
    own: Tree,
    *,
    data: ClientData,
    key: jax.Array,
) -> ClientOutput:
    """Both changes of a client; c_k moves by what the server decodes, as c does."""
    start, control = message

    def correct(gradients, y):
        return jax.tree.map(lambda g, k, c: g - k + c, gradients, own, control)

    moments = optimizer_of(local.optimizer, data.round).init(start)
    (trained, moments), metrics = local.walk(
        (start, moments), backbone, data, key, correct=correct
    )
    if option == "II":
        mean = jax.tree.map(lambda x: x / data.n_steps, moments.sum)
        change = trees.subtract(mean, control)
    else:
        gradient, _ = gradient_over(
            local.task,
            start,
            backbone,
            data,
            stream(key, Stream.WHOLE_PASS),
            n_batches=passes_over(data),
        )
        change = trees.subtract(gradient, own)
    return ClientOutput(
        upload=Both(trees.subtract(start, trained), change),
        weight=jnp.float32(1),
        state=lambda sent: trees.add(own, sent.control),
        metrics=metrics,
    )
