"""The models in PyTorch, and parameters to and from the layout of the data file.

That layout is the usual one of JAX.
"""

import torch
from torch import nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Two dense layers, whose sizes are those of the data file."""

    def __init__(self, start):
        super().__init__()
        self.dense1 = nn.Linear(*start["dense1"].shape)
        self.dense2 = nn.Linear(*start["dense2"].shape)

    def forward(self, x):
        """Logits."""
        return self.dense2(F.relu(self.dense1(x)))


class CNN(MLP):
    """Two convolutions of 3 x 3 without padding, max-pool 2, two dense layers.

    Reads [B, C, H, W].
    """

    def __init__(self, start):
        super().__init__(start)
        _, _, n_in, n_middle = start["conv1"].shape
        self.conv1 = nn.Conv2d(n_in, n_middle, 3)
        self.conv2 = nn.Conv2d(n_middle, start["conv2"].shape[-1], 3)

    def forward(self, x):
        """Logits."""
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return super().forward(x.flatten(1))


def make(workload, start):
    """The workload's model with the parameters of the data file."""
    model = (CNN if workload == "cifar-cnn" else MLP)(start)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in start.items():
            layer, _, is_bias = name.partition("_")
            value = torch.from_numpy(array)
            if not is_bias:
                value = (
                    value.permute(3, 2, 0, 1)
                    if value.ndim == 4
                    else _channels_first(value, start, layer).T
                )
            parameters[f"{layer}.{'bias' if is_bias else 'weight'}"].copy_(value)
    return model


def named(model, start):
    """{name: array}: a model's parameters, or a dictionary of them, as in the data file."""
    parameters = (
        dict(model.named_parameters()) if isinstance(model, nn.Module) else model
    )
    arrays = {}
    for name in start:
        layer, _, is_bias = name.partition("_")
        value = parameters[f"{layer}.{'bias' if is_bias else 'weight'}"].detach()
        if not is_bias:
            value = (
                value.permute(2, 3, 1, 0)
                if value.ndim == 4
                else _channels_last(value.T, start, layer)
            )
        arrays[name] = value.numpy()
    return arrays


def tensors(data):
    """Each client's (x, y); pictures as [n, C, H, W]."""
    clients = [data.client(k) for k in range(data.n_clients)]

    def x(c):
        return c["x"].transpose(0, 3, 1, 2) if c["x"].ndim == 4 else c["x"]

    return [
        (torch.from_numpy(x(c)).contiguous(), torch.from_numpy(c["y"]).long())
        for c in clients
    ]


def _channels_first(dense, start, layer):
    """Rows of the first dense layer of the CNN, from (H, W, C) order to (C, H, W)."""
    if layer != "dense1" or "conv2" not in start:
        return dense
    channels = start["conv2"].shape[-1]
    return (
        dense.reshape(-1, channels, dense.shape[1]).transpose(0, 1).reshape(dense.shape)
    )


def _channels_last(dense, start, layer):
    """The inverse of `_channels_first`."""
    if layer != "dense1" or "conv2" not in start:
        return dense
    channels = start["conv2"].shape[-1]
    return (
        dense.reshape(channels, -1, dense.shape[1]).transpose(0, 1).reshape(dense.shape)
    )
