"""FedDyn: Federated Learning Based on Dynamic Regularization.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, 2021, arXiv 2111.04263,
algorithm 1.

    client:  w_k ~ argmin f_k(v) - <g_k, v> + alpha/2 ||v - w||^2
             g_k <- g_k - alpha (w_k - w);  sends w - w_k
    server:  h <- h - alpha/N sum_S (w_k - w)
             w <- mean_S w_k - h / alpha
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.everyone import meets_everyone
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    LocalTraining,
    local_training,
)
from fedjax_fm.algorithms.reduce import MeanAndShare, mean_and_share
from fedjax_fm.types import (
    Algorithm,
    ClientData,
    ClientOutput,
    Exchange,
    Task,
    Tree,
)


class FedDynState(NamedTuple):
    """Server state."""

    delta: Tree  # w
    correction: Tree  # h, the mean of g_k over all N clients


def feddyn(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    alpha: float = 0.1,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg whose clients' losses are bent so that their minima meet.

        w_k ~ argmin f_k(v) - <g_k, v> + alpha/2 ||v - w||^2

    Every client counts the same, as in the paper. h = mean_k g_k over all N clients, at
    all times and behind any uplink. Where it comes to rest, w is stationary for the
    plain mean of the f_k, if the clients' local work solves their problems. Local work
    that is far from that, or a rate beyond 2 / (L + alpha), lets h grow without bound:
    the round in which a client's numbers overflow is an error that names it.

    Sends: as `fedavg`, half of SCAFFOLD. Memory: one tree a client.

    A client that the sampler never draws keeps g_k = 0 and counts in h. A sampler that
    always draws the same part of the clients is refused.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      alpha: > 0, strength of the regularizer, 0.01 to 0.1 in the paper.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedDynState`; a client's state is its g_k.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, the
        sampler never meets some clients.

    References:
      Acar et al. 2021, arXiv 2111.04263, algorithm 1.

    Example:
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):  # curvatures differ, and so do minima
      ...     return batch["h"] * (w - batch["x"]) ** 2 / 2, {}
      >>> how = {"alpha": 1.0, "local_steps": 20, "batch_size": 1}
      >>> method = feddyn(Task(loss), optax.sgd(0.2), **how)
      >>> clients = [{"h": jnp.array([h]), "x": jnp.array([h])} for h in (1.0, 3.0)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 60)
      >>> round(float(state.delta), 4)  # (1 * 1 + 3 * 3) / (1 + 3)
      2.5
    """
    checks.real("alpha", alpha, above=0)
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )

    def client(backbone, message):
        def one(start, own, data, key):
            return _client(local, alpha, start, own, backbone, data=data, key=key)

        return one

    def server(state, aggregate, key):
        return _served(alpha, state, aggregate.value), {}

    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=client,
        server=server,
        reduce=mean_and_share(),
        batches=local.batches,
    )
    return Algorithm(
        init=lambda delta, key, setting: FedDynState(delta, _zeros_like(delta)),
        exchanges=(exchange,),
        client_init=lambda delta, key: _zeros_like(delta),
        sampler=meets_everyone("FedDyn", "the server's h"),
    )


def _zeros_like(delta: Tree) -> Tree:
    return jax.tree.map(jnp.zeros_like, delta)


def _client(
    local: LocalTraining,
    alpha: float,
    start: Tree,
    own: Tree,
    backbone: Tree,
    *,
    data: ClientData,
    key: jax.Array,
) -> ClientOutput:
    """Local steps on the bent loss; g_k moves by what the server decodes, as h does."""

    def correct(gradients, w):
        def bent(g, k, x, s):
            return jnp.asarray(g - k + alpha * (x - s), g.dtype)

        return jax.tree.map(bent, gradients, own, w, start)

    def next_state(sent):
        return optax.apply_updates(own, jax.tree.map(lambda d: alpha * d, sent))

    trained, metrics = local.run(start, backbone, data, key, correct=correct)
    return ClientOutput(
        upload=trees.subtract(start, trained),
        weight=jnp.float32(1),
        state=next_state,
        metrics=metrics,
    )


def _served(alpha: float, state: FedDynState, found: MeanAndShare) -> FedDynState:
    """The next h and w; nothing where no client arrived."""
    mean, share = found
    changes = jax.tree.map(lambda d: alpha * share * d, mean)
    correction = optax.apply_updates(state.correction, changes)

    def step(d, h):
        return jnp.where(share > 0, -d - h / alpha, 0)

    steps = jax.tree.map(step, mean, correction)
    return FedDynState(optax.apply_updates(state.delta, steps), correction)
