"""Local only: every client trains alone and sends nothing.

The baseline that says whether federating pays.

client:  d_k <- d_k after local steps on its own data, d_k = the common start in round
0;  sends nothing
server:  does nothing
"""

from typing import NamedTuple

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer, checked, client_weight, train
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientOutput,
    Exchange,
    Task,
    Tree,
    Unbilled,
)


class LocalOnlyState(NamedTuple):
    """Server state: the common start, never changed."""

    delta: Tree


def local_only(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Each client's own delta is its client state; the optimizer starts afresh each round.

    Sends: nothing, in both directions.
    """
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()

    def client(backbone, message):
        def one(message, delta, data, key):
            trained, metrics = train(task, client_optimizer, delta, backbone, data, key)
            return ClientOutput(
                upload=(),
                weight=client_weight(task, data),
                state=trained,
                metrics=metrics,
            )

        return one

    exchange = Exchange(
        broadcast=lambda state: Unbilled(()),
        client=client,
        server=lambda state, aggregate, key: (state, {}),
        reduce=weighted_mean(),
        batches=batches,
    )

    def init(delta, key, setting):
        return LocalOnlyState(delta)

    def client_init(delta, key):
        return delta

    def model(server, own, backbone):
        return (server.delta if own is None else own), backbone

    return Algorithm(
        init=init, exchanges=(exchange,), client_init=client_init, model=model
    )
