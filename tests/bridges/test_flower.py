"""Flower carries our rounds. Without Flower, stand-ins of its records and of its grid show
what is sent and what is not answered; with it, its own records are used.
"""

import importlib
import importlib.util
import sys
import types

import datasets
import numpy as np
import pytest
from bridge_problem import METHODS, N, clients, close, federation_of, remote

from fedjax_fm.bridges import flower, start


class ArrayRecord:
    def __init__(self, arrays):
        self.arrays = [np.array(array) for array in arrays]

    def to_numpy_ndarrays(self):
        return [array.copy() for array in self.arrays]


class Message:
    """As `flwr.app.Message`: made with a destination, or as a reply."""

    def __init__(
        self, content=None, message_type="", dst_node_id=0, reply_to=None, error=None
    ):
        self.content, self.error = content, error
        self.message_type = message_type
        source = 0 if reply_to is None else reply_to.metadata.dst_node_id
        self.metadata = types.SimpleNamespace(
            src_node_id=source, dst_node_id=dst_node_id
        )

    def has_error(self):
        return self.error is not None


def stand_in():
    module = types.ModuleType("flwr.app")
    module.ArrayRecord, module.Message = ArrayRecord, Message
    module.ConfigRecord = module.RecordDict = dict
    return module


@pytest.fixture(params=["stand-in", "flwr"])
def records(request, monkeypatch):
    if request.param == "flwr":
        if importlib.util.find_spec("flwr") is None:
            pytest.skip("Flower is not installed")
        import flwr.app

        _in_a_task(monkeypatch)
        return flwr.app
    module = stand_in()
    monkeypatch.setitem(sys.modules, "flwr", types.ModuleType("flwr"))
    monkeypatch.setitem(sys.modules, "flwr.app", module)
    return module


def _in_a_task(monkeypatch):
    """Newer versions make messages in the processes of their tasks alone."""
    name = "flwr.supercore.task_identity"
    if importlib.util.find_spec("flwr.supercore") and importlib.util.find_spec(name):
        identity = importlib.import_module(name).TaskIdentity
        for field in ("_task_id", "_run_id", "_node_id"):
            monkeypatch.setattr(identity, field, 1)


class Grid:
    """A grid whose nodes 100, 101, ... have partitions in another order."""

    def __init__(self, records, federation, silent=(), broken=()):
        self.records, self.federation = records, federation
        self.silent, self.broken = set(silent), set(broken)
        self.contexts = {
            100 + i: types.SimpleNamespace(
                node_config={"partition-id": (3 * i) % N}, state={}
            )
            for i in range(N)
        }
        self.waited = []

    def get_node_ids(self):
        return list(self.contexts)

    def send_and_receive(self, messages, *, timeout=None):
        self.waited.append(timeout)
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            context = self.contexts[node]
            k = context.node_config["partition-id"]
            is_query = not message.content
            if k in self.silent and not is_query:
                continue
            if k in self.broken and not is_query:
                error = types.SimpleNamespace(reason="out of memory")
                replies.append(Message(reply_to=message, error=error))
                continue
            if is_query:
                replies.append(flower.answer_query(self.records, message, context))
            else:
                work = (self.records, self.federation, clients().__getitem__)
                replies.append(flower.answer_train(*work, message, context))
        return replies


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_rounds_over_a_grid_are_the_same_rounds(records, name):
    federation = federation_of(METHODS[name]())
    grid, seen = Grid(records, federation), []

    def done(state, history):
        seen.append(history)

    found = flower.run(federation, start(federation), 3, grid, timeout=7.0, done=done)
    expected, history, states = remote(federation, 3)
    close(
        federation.algorithm.delta(found.server),
        federation.algorithm.delta(expected.server),
    )
    assert [row["uplink_bytes"] for row in seen[0]] == [
        row["uplink_bytes"] for row in history
    ]
    assert set(grid.waited) == {7.0}
    for context in grid.contexts.values():
        if flower.STATES in context.state:
            kept = context.state[flower.STATES].to_numpy_ndarrays()
            for mine, theirs in zip(
                kept, states[context.node_config["partition-id"]], strict=True
            ):
                close(mine, theirs)


def test_a_client_that_never_answers_ends_the_run_after_the_stated_time(records):
    federation = federation_of(METHODS["fedavg"]())
    grid = Grid(records, federation, silent=range(N))
    with pytest.raises(
        flower.NoAnswer, match=r"round 1: no answer of client \d within 2.5 s \(5 of 5"
    ):
        flower.run(federation, start(federation), 1, grid, timeout=2.5)


def test_a_client_that_fails_ends_the_run_with_what_it_said(records):
    federation = federation_of(METHODS["fedavg"]())
    grid = Grid(records, federation, broken=range(N))
    with pytest.raises(flower.NoAnswer, match="answered with an error: out of memory"):
        flower.run(federation, start(federation), 1, grid)


def test_a_partition_that_no_node_has_is_named(records):
    federation = federation_of(METHODS["fedavg"]())
    grid = Grid(records, federation)
    lost = next(
        k for k, c in grid.contexts.items() if c.node_config["partition-id"] == 4
    )
    del grid.contexts[lost]
    with pytest.raises(flower.NoAnswer, match="partition 4"):
        flower.run(federation, start(federation), 1, grid, timeout=0.2)


def test_nodes_that_report_late_are_waited_for(records):
    """As in a simulation of Flower, whose server begins before there are any."""
    federation = federation_of(METHODS["fedavg"]())
    grid, looks = Grid(records, federation), []

    def later():
        looks.append(1)
        return list(grid.contexts)[: 3 * len(looks)]

    grid.get_node_ids = later
    flower.run(federation, start(federation), 0, grid, timeout=60.0)
    assert len(looks) == 3  # of 3, 6 and 7 nodes


def test_without_flower_the_extra_is_named(monkeypatch):
    for name in ("flwr", "flwr.app", "flwr.serverapp", "flwr.clientapp"):
        monkeypatch.setitem(sys.modules, name, None)
    federation = federation_of(METHODS["fedavg"]())
    with pytest.raises(ImportError, match=r"pip install 'fedjax-fm\[flower\]'"):
        flower.server_app(federation, 1)
    with pytest.raises(ImportError, match=r"pip install 'fedjax-fm\[flower\]'"):
        flower.client_app(federation, clients().__getitem__)
    with pytest.raises(ValueError, match="timeout > 0"):
        flower.server_app(federation, 1, timeout=0)


class FederatedDataset:
    """As flwr-datasets' one: partitions that are tables of `datasets`."""

    def load_partition(self, partition_id, split):
        assert split == "train"
        n = partition_id + 1
        return datasets.Dataset.from_dict(
            {"label": list(range(n)), "x": [[float(partition_id)] * 2] * n}
        )


def test_partitions_of_flwr_datasets_are_clients():
    found = flower.partitions(FederatedDataset(), 3)
    assert found.sizes.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(found.arrays["label"], [0, 0, 1, 0, 1, 2])
    np.testing.assert_array_equal(found.arrays["x"][:, 0], [0, 1, 1, 2, 2, 2])
    with pytest.raises(TypeError, match="FederatedDataset of flwr-datasets"):
        flower.partitions([], 3)
