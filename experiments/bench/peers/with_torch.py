"""A bare PyTorch loop: one model, one client after the other, without a library."""

import protocol
import torch
import torch_models
from torch.nn import functional as F


def train(model, data, x, y):
    """Local SGD in place; passes are shuffled if there is more than one batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=data.learning_rate)
    for _ in range(data.epochs):
        order = (
            torch.randperm(len(x)) if len(x) > data.batch_size else torch.arange(len(x))
        )
        for rows in order.split(data.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


def build(workload, data):
    """See protocol.serve."""
    model = torch_models.make(workload, data.start)
    clients = torch_models.tensors(data)
    n_examples = int(data.offsets[-1])

    def run(rounds):
        for _ in range(rounds):
            start = {name: p.detach().clone() for name, p in model.named_parameters()}
            mean = {name: torch.zeros_like(p) for name, p in start.items()}
            for x, y in clients:
                _assign(model, start)
                train(model, data, x, y)
                for name, p in model.named_parameters():
                    mean[name] += p.detach() * (len(x) / n_examples)
            _assign(model, mean)

    return run, lambda: torch_models.named(model, data.start)


def _assign(model, values):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(values[name])


if __name__ == "__main__":
    protocol.serve(build)
