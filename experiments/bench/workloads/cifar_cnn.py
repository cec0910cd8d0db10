"""cifar-cnn: pfl-research's CIFAR10 workload, without dropout and on random pictures.

50 clients x 50 examples, one epoch of batches of 10; Conv32 3 x 3, Conv64 3 x 3,
max-pool 2, dense 128, dense 10.
"""

import jax.numpy as jnp
import numpy as np

from fedjax_fm.experiments.bench.conv import conv_as_matmul, max_pool_2
from fedjax_fm.experiments.bench.workload import (
    Data,
    Workload,
    cross_entropy,
    fedavg,
    mlp,
    mlp_start,
    normal,
    product_flop,
    seeded,
)

CLASSES, COLOURS = 10, 3


def make(
    *,
    n_clients: int,
    examples: int,
    batch_size: int,
    side: int,
    widths: tuple[int, int, int],
) -> Data:
    """Random pictures and labels, and the first parameters.

    Args:
      n_clients: how many.
      examples: of a client.
      batch_size: of a local step.
      side: of the pictures, in pixels.
      widths: of both convolutions and of the dense layer.
    """
    rng = seeded("cifar-cnn")
    n = n_clients * examples
    one, two, hidden = widths
    pooled = (side - 4) // 2
    first, second, pictures = (3, 3, COLOURS, one), (3, 3, one, two), (n, side, side)
    start = {
        "conv1": normal(rng, *first),
        "conv1_bias": np.zeros(one, np.float32),
        "conv2": normal(rng, *second),
        "conv2_bias": np.zeros(two, np.float32),
    }
    return Data(
        examples={
            "x": normal(rng, *pictures, COLOURS, scale=1.0),
            "y": rng.integers(0, CLASSES, n, np.int32),
        },
        offsets=np.arange(n_clients + 1) * examples,
        start=start | mlp_start(rng, pooled * pooled * two, hidden, CLASSES),
        batch_size=batch_size,
        learning_rate=0.05,
    )


def cnn(p, x):
    """Logits f32[B, classes] of pictures f32[B, H, W, colours]."""
    for name in ("conv1", "conv2"):
        x = jnp.maximum(conv_as_matmul(x, p[name]) + p[f"{name}_bias"], 0)
    flat = max_pool_2(x).reshape(len(x), -1)
    return mlp(p, flat)


def simulator(data: Data):
    """Our side."""
    return fedavg(cross_entropy(cnn), data), data.start


def flop(data: Data) -> float:
    """FLOP of all epochs; each position of a convolution is a row of a product.

    The first convolution needs no gradient of its input.
    """
    side = data.examples["x"].shape[1]
    shape = {
        name: (int(np.prod(w.shape[:-1])), w.shape[-1])
        for name, w in data.start.items()
        if w.ndim > 1
    }
    one = (
        (side - 2) ** 2 * product_flop(*shape["conv1"], products=2)
        + (side - 4) ** 2 * product_flop(*shape["conv2"])
        + product_flop(*shape["dense1"])
        + product_flop(*shape["dense2"])
    )
    return float(data.offsets[-1]) * data.epochs * one


def made(smoke: bool) -> Data:
    """The workload's sizes, or tiny ones."""
    if smoke:
        return make(n_clients=5, examples=10, batch_size=5, side=12, widths=(4, 8, 16))
    return make(n_clients=50, examples=50, batch_size=10, side=32, widths=(32, 64, 128))


CIFAR_CNN = Workload(
    name="cifar-cnn",
    summary="50 clients x 50 pictures of 32 x 32, batches of 10, one epoch, pfl-research's CNN",
    make=made,
    simulator=simulator,
    flop=flop,
    peers=("fedjax", "torch"),
)
