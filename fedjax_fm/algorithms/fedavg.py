"""FedAvg: Communication-Efficient Learning of Deep Networks from Decentralized Data.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, 2017, arXiv 1602.05629; server
optimizer after Reddi et al., 2020, arXiv 2003.00295.

    client:  w_k <- w;  for each batch b: w_k <- w_k - eta * grad loss(w_k; b)
             sends w - w_k
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k))
             p_k = n_k / sum of n over the cohort
"""

from typing import Any, NamedTuple

import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    LocalTraining,
    local_training,
    sends_update,
)
from fedjax_fm.algorithms.parts import in_f32
from fedjax_fm.algorithms.private_steps import PrivateSteps, private_steps
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.privacy.examples import ExamplePrivacy
from fedjax_fm.types import Algorithm, Exchange, Task, Tree


class FedAvgState(NamedTuple):
    """Server state."""

    delta: Tree
    optimizer: Any


def fedavg(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
    example_privacy: ExamplePrivacy | None = None,
) -> Algorithm:
    """Federated averaging, weighted by examples or by the task's weights of them.

    Sends: down w, up w - w_k, both the size of delta before any channel.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; `lambda round:
        optax.adam(schedule(round))` follows a schedule.
      server_optimizer: applied to the mean of (start - end); None means
        `optax.sgd(1.0)`, plain FedAvg; `server_optimizers` has FedAdam's and the others
        of Reddi et al., which are not optax's.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.
      example_privacy: clips the gradient of each example and adds noise to their mean
        in every local step (DP-SGD), for a task without weights; None: plain steps.

    Returns:
      An algorithm whose server state is `FedAvgState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      McMahan et al. 2017, arXiv 1602.05629, algorithm 1; Reddi et al. 2020, arXiv
      2003.00295, algorithm 1 for the server's optimizer.

    Example:
      >>> import jax, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> method = fedavg(task, optax.sgd(0.5), local_steps=1, batch_size=2)
      >>> clients = [{"x": jax.numpy.array([0.0, 2.0])}, {"x": jax.numpy.array([3.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jax.numpy.float32(0)), 1)
      >>> round(float(state.delta), 4)  # (2 * 0.5 + 1 * 1.5) / 3
      0.8333
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.server_optimizer("server_optimizer", server_optimizer)
    private = _private(local, example_privacy)
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer

    def init(delta, key, setting):
        return FedAvgState(delta, optimizer.init(in_f32(delta)))

    def server(state, aggregate, key):
        updates, moments = optimizer.update(
            aggregate.value, state.optimizer, in_f32(state.delta)
        )
        return FedAvgState(optax.apply_updates(state.delta, updates), moments), {}

    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=sends_update(local, gradient=private and private.gradient_of),
        server=server,
        reduce=weighted_mean(),
        batches=local.batches,
    )
    said = None if private is None else private.noise.privacy
    return Algorithm(init=init, exchanges=(exchange,), privacy=said)


def _private(
    local: LocalTraining, chosen: ExamplePrivacy | None
) -> PrivateSteps | None:
    """The steps of DP-SGD, if clients are to make them."""
    advice = "write privacy.ExamplePrivacy(clip_norm, noise_multiplier)"
    checks.instance("example_privacy", chosen, ExamplePrivacy, advice, optional=True)
    if chosen is None:
        return None
    how = {**chosen._asdict(), "method": "fedavg"}
    return private_steps(local.task, local.batches, **how)
