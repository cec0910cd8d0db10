"""FedAvg: Communication-Efficient Learning of Deep Networks from Decentralized Data.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, 2017, arXiv 1602.05629; server
optimizer after Reddi et al., 2020, arXiv 2003.00295.

    client:  w_k <- w;  for each batch b: w_k <- w_k - eta * grad loss(w_k; b);  sends w - w_k
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k)),   p_k = n_k / sum of n over the cohort
"""

from typing import Any, NamedTuple

import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer, checked, client_weight, train
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.types import Algorithm, Batches, ClientOutput, Exchange, Task, Tree


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
) -> Algorithm:
    """Federated averaging, weighted by the number of examples, or by the weights that
    the task gives them.

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

    Sends: down w, up w - w_k, both the size of delta before any channel.
    """
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    checks.server_optimizer("server_optimizer", server_optimizer)
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    batches = Batches(batch_size, epochs, local_steps).checked()

    def init(delta, key, setting):
        return FedAvgState(delta, optimizer.init(delta))

    def client(backbone, message):
        def one(delta, state, data, key):
            trained, metrics = train(task, client_optimizer, delta, backbone, data, key)
            return ClientOutput(
                upload=trees.subtract(delta, trained),
                weight=client_weight(task, data),
                state=state,
                metrics=metrics,
            )

        return one

    def server(state, aggregate, key):
        updates, moments = optimizer.update(
            aggregate.value, state.optimizer, state.delta
        )
        return FedAvgState(optax.apply_updates(state.delta, updates), moments), {}

    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=client,
        server=server,
        reduce=weighted_mean(),
        batches=batches,
    )
    return Algorithm(init=init, exchanges=(exchange,))
