"""The client's half of with_flower.py.

It is a module of its own, so that each actor imports it and keeps the data.
"""

import functools

import protocol
import torch
import torch_models
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from with_torch import train

app = ClientApp()


@functools.lru_cache(maxsize=1)
def clients_of(path):
    """(data, each client's tensors), read once an actor."""
    torch.set_num_threads(1)  # an actor has one CPU
    data = protocol.Data.load(path)
    return data, torch_models.tensors(data)


@app.train()
def local(message, context):
    """Local SGD from the server's parameters."""
    config = message.content["config"]
    data, clients = clients_of(config["data"])
    x, y = clients[int(context.node_config["partition-id"])]
    model = torch_models.make(config["workload"], data.start)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train(model, data, x, y)
    metrics = MetricRecord({"num-examples": len(x)})
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
    )
    return Message(content=content, reply_to=message)


def record(workload, start):
    """The first parameters as Flower sends them."""
    return ArrayRecord(torch_models.make(workload, start).state_dict())


def named(arrays, start):
    """Flower's parameters in the layout of the data file."""
    return torch_models.named(arrays.to_torch_state_dict(), start)
