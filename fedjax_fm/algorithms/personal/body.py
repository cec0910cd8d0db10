"""A body that is averaged and a head that is not: FedPer, FedRep and FedBABU.

server:  body <- body - server_optimizer(sum_k p_k (body - body_k))
the head of the server is the one that all clients began with
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.fedavg import FedAvgState
from fedjax_fm.algorithms.personal.leaves import Leaves, PersonalPart, put
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.types import Algorithm, Batches, Exchange, Unbilled


class BodyMessage(NamedTuple):
    """What clients are sent; only the body is billed.

    Attributes:
      body: the shared leaves.
      known: the delta; its form and its first head are known from the start.
    """

    body: Leaves
    known: Any


def averages_body(
    part: PersonalPart,
    server_optimizer: optax.GradientTransformation | None,
    client: Callable,
    batches: Batches,
) -> Algorithm:
    """FedAvg of the shared leaves, with another client.

    Args:
      part: which leaves are personal.
      server_optimizer: of the shared leaves; None means `optax.sgd(1.0)`.
      client: `Exchange.client`; is sent a `BodyMessage`, uploads the change of its body.
      batches: how a client walks its data.

    Returns:
      An algorithm whose server state is `FedAvgState`, the optimizer's that of the
      body; clients keep nothing.

    Raises:
      TypeError: the server's optimizer is none.
    """
    checks.server_optimizer("server_optimizer", server_optimizer)
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer

    def init(delta, key, setting):
        part.check(delta)
        body = part.shared(delta)
        return FedAvgState(delta, optimizer.init(body))

    def broadcast(state):
        body = part.shared(state.delta)
        return BodyMessage(body=body, known=Unbilled(state.delta))

    def server(state, aggregate, key):
        body = part.shared(state.delta)
        updates, moments = optimizer.update(aggregate.value, state.optimizer, body)
        body: Any = optax.apply_updates(body, updates)
        return FedAvgState(put(state.delta, body), moments), {}

    exchange = Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=weighted_mean(),
        batches=batches,
    )
    return Algorithm(init=init, exchanges=(exchange,))


def keeps_heads(algorithm: Algorithm, part: PersonalPart) -> Algorithm:
    """The same method, whose client states are heads of clients' own.

    Args:
      algorithm: its clients take and give heads as their states.
      part: which leaves are personal.

    Returns:
      An algorithm whose `model` of a client is the body under the client's own head.
    """

    def client_init(delta, key):
        return part.own(delta)

    def model(server, own, backbone):
        return (server.delta if own is None else put(server.delta, own)), backbone

    return algorithm._replace(client_init=client_init, model=model)
