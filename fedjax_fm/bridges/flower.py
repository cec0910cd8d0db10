"""Our methods as Flower's ServerApp and ClientApps.

    app = flower.server_app(federation, rounds=10)
    app = flower.client_app(federation, load)      # load(partition) -> {column: array}

Flower carries the messages; what is in them, and what is done with them, is ours, so
that the model after a run is that of `Simulator`. A client that does not answer within
`timeout` seconds ends the run with an error that names it.

Flower is an option: pip install flwr. Its interface is that of flwr 1.20 and later
(`flwr.app`, `flwr.serverapp`, `flwr.clientapp`).
"""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_fm import checks
from fedjax_fm.bridges.client import answer, first_states
from fedjax_fm.bridges.federation import Federation, Reply, Request, ServerState
from fedjax_fm.bridges.server import run_round, start
from fedjax_fm.population.population import Population

ARRAYS, CONFIG, STATES = "arrays", "config", "fedjax_fm.states"
TRAIN, QUERY = "train", "query"
POLL = 0.1  # seconds between two looks for nodes
Load = Callable[[int], Mapping[str, np.ndarray]]


class NoAnswer(RuntimeError):
    """Clients that did not answer in time, or answered with an error."""


def server_app(
    federation: Federation,
    rounds: int,
    *,
    timeout: float = 600.0,
    done: Callable[[ServerState, list[dict[str, float]]], None] | None = None,
) -> Any:
    """A Flower ServerApp that runs rounds of a method.

    Args:
      federation: what server and clients agree on.
      rounds: how many.
      timeout: seconds that a client may take for an answer, above 0.
      done: called with the server's state and the metrics of all rounds at the end.

    Returns:
      A `flwr.serverapp.ServerApp`.

    Raises:
      ImportError: Flower is not installed.
      TypeError, ValueError: a number out of bounds, or a method that no bridge carries.
    """
    checks.whole("rounds", rounds, least=0)
    checks.real("timeout", timeout, above=0)
    state = start(federation)  # refuses what cannot be run
    app = _imported("flwr.serverapp").ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:
        run(federation, state, rounds, grid, timeout=timeout, done=done)

    return app


def run(
    federation: Federation,
    state: ServerState,
    rounds: int,
    grid: Any,
    *,
    timeout: float = 600.0,
    done: Callable[[ServerState, list[dict[str, float]]], None] | None = None,
) -> ServerState:
    """Rounds over a Flower grid.

    Args:
      federation: what server and clients agree on.
      state: from `start`.
      rounds: how many.
      grid: of Flower, with `get_node_ids` and `send_and_receive`.
      timeout: seconds that a client may take for an answer.
      done: as for `server_app`.

    Returns:
      The server's state.

    Raises:
      NoAnswer: names the clients that did not answer.
    """
    flower = _imported("flwr.app")
    nodes = _nodes(flower, federation, grid, timeout)
    history = []

    def send(requests: Sequence[Request]) -> list[Reply]:
        return _sent(flower, grid, nodes, requests, timeout)

    for _ in range(rounds):
        state, metrics = run_round(federation, state, send)
        history.append(metrics)
    if done is not None:
        done(state, history)
    return state


def client_app(federation: Federation, load: Load) -> Any:
    """A Flower ClientApp that does a client's part.

    Its number is the node's `partition-id`. What it keeps from round to round lies in
    Flower's context.

    Args:
      federation: what server and clients agree on.
      load: `partition -> {column: [n, ...]}`, its examples.

    Returns:
      A `flwr.clientapp.ClientApp`.

    Raises:
      ImportError: Flower is not installed.
    """
    flower = _imported("flwr.app")
    app = _imported("flwr.clientapp").ClientApp()

    @app.query()
    def who(message: Any, context: Any) -> Any:
        return answer_query(flower, message, context)

    @app.train()
    def work(message: Any, context: Any) -> Any:
        return answer_train(flower, federation, load, message, context)

    return app


def answer_query(flower: Any, message: Any, context: Any) -> Any:
    """Says which partition a node has.

    Args:
      flower: the module `flwr.app`.
      message: of Flower.
      context: of the node.

    Returns:
      The reply.
    """
    config = flower.ConfigRecord({"client": _partition(context)})
    content = flower.RecordDict({CONFIG: config})
    return flower.Message(content=content, reply_to=message)


def answer_train(
    flower: Any, federation: Federation, load: Load, message: Any, context: Any
) -> Any:
    """Does a client's part of an exchange.

    Args:
      flower: the module `flwr.app`.
      federation: what server and clients agree on.
      load: `partition -> {column: [n, ...]}`.
      message: of Flower.
      context: of the node, in whose state the client's own is kept.

    Returns:
      The reply.
    """
    client, config = _partition(context), message.content[CONFIG]
    request = Request(
        client=client,
        round=int(config["round"]),
        exchange=int(config["exchange"]),
        arrays=message.content[ARRAYS].to_numpy_ndarrays(),
    )
    if STATES in context.state:
        states = context.state[STATES].to_numpy_ndarrays()
    else:
        states = first_states(federation, client)
    reply, states = answer(federation, request, load(client), states)
    context.state[STATES] = flower.ArrayRecord(states)
    content = flower.RecordDict(
        {
            ARRAYS: flower.ArrayRecord(reply.arrays),
            CONFIG: flower.ConfigRecord({"client": client}),
        }
    )
    return flower.Message(content=content, reply_to=message)


def partitions(dataset: Any, n_clients: int, split: str = "train") -> Population:
    """The partitions of a flwr-datasets `FederatedDataset`, as a population.

    Args:
      dataset: with `load_partition(partition_id, split)`.
      n_clients: how many partitions are read.
      split: of the data set.

    Returns:
      A population whose client k has partition k.

    Raises:
      TypeError: `dataset` has no partitions.
      ValueError: columns of text, which have to become numbers first; see `Population`.
    """
    checks.whole("n_clients", n_clients, least=1)
    if not hasattr(dataset, "load_partition"):
        raise TypeError(
            "expected a FederatedDataset of flwr-datasets, with load_partition, got "
            f"{checks.shown(dataset)}"
        )
    clients = []
    for k in range(n_clients):
        table = dataset.load_partition(k, split)
        part = Population.from_table(table, rows=[range(len(table))])
        clients.append(dict(part.arrays))
    return Population.from_clients(clients)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            "bridges.flower needs Flower: pip install 'fedjax-fm[flower]'"
        ) from error


def _partition(context: Any) -> int:
    """The number of a node's client."""
    return int(context.node_config["partition-id"])


def _nodes(
    flower: Any, federation: Federation, grid: Any, timeout: float
) -> dict[int, int]:
    """{client: node}, from an answer of every node."""
    waiting = _connected(grid, federation.n_clients, timeout)
    messages = [
        flower.Message(
            content=flower.RecordDict({}), message_type=QUERY, dst_node_id=node
        )
        for node in waiting
    ]
    replies = _whole(grid.send_and_receive(messages, timeout=timeout))
    found = {
        int(reply.content[CONFIG]["client"]): reply.metadata.src_node_id
        for reply in replies
    }
    if missing := sorted(set(range(federation.n_clients)) - set(found)):
        silent = sorted(set(waiting) - set(found.values()))
        raise NoAnswer(
            f"expected nodes with the partitions 0 to {federation.n_clients - 1}, none "
            f"said within {timeout:g} s that it has partition {missing[0]}; "
            f"{len(silent)} of {len(waiting)} nodes said nothing"
        )
    return found


def _connected(grid: Any, n_clients: int, timeout: float) -> list[int]:
    """The nodes, once there are as many as clients; after the time those that are there.

    A ServerApp begins before its nodes have reported.
    """
    deadline = time.monotonic() + timeout
    while len(nodes := list(grid.get_node_ids())) < n_clients:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL)
    return nodes


def _sent(
    flower: Any,
    grid: Any,
    nodes: Mapping[int, int],
    requests: Sequence[Request],
    timeout: float,
) -> list[Reply]:
    """The replies to all requests."""
    messages = []
    for request in requests:
        numbers = {"round": request.round, "exchange": request.exchange}
        content = flower.RecordDict(
            {
                ARRAYS: flower.ArrayRecord(request.arrays),
                CONFIG: flower.ConfigRecord(numbers),
            }
        )
        node = nodes[request.client]
        messages.append(
            flower.Message(content=content, message_type=TRAIN, dst_node_id=node)
        )
    replies = _whole(grid.send_and_receive(messages, timeout=timeout))
    found = [
        Reply(
            int(reply.content[CONFIG]["client"]),
            reply.content[ARRAYS].to_numpy_ndarrays(),
        )
        for reply in replies
    ]
    came = {reply.client for reply in found}
    if missing := [one.client for one in requests if one.client not in came]:
        raise NoAnswer(
            f"round {requests[0].round + 1}: no answer of client {missing[0]} within "
            f"{timeout:g} s ({len(missing)} of {len(requests)} clients are silent)"
        )
    return found


def _whole(replies: Any) -> list[Any]:
    """The replies, none of which is an error."""
    found = list(replies)
    for reply in found:
        if reply.has_error():
            raise NoAnswer(
                f"node {reply.metadata.src_node_id} answered with an error: "
                f"{reply.error.reason}"
            )
    return found
