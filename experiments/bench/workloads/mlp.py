"""Whole models of two dense layers.

mlp-1000       many clients: 1000 x 20 examples x 784, 784-128-10, 5 full-batch steps
tiny-round     the cost of a round itself: 10 clients x 20 examples x 32, 32-16-10,
               one step; a call is 100 fused rounds
ragged         1000 clients of log-normal sizes (median 20, clipped to 1..400),
               784-128-10, one epoch of batches of 20
ragged-equal   the same number of local steps (to 1 in 1000) by clients that are all
               alike: what ragged would cost if steps alone did
"""

import numpy as np

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

CLASSES = 10


def make(name: str, sizes: np.ndarray, n_in: int, hidden: int, **settings) -> Data:
    """Random examples and labels of clients, and the first parameters.

    Args:
      name: of the workload.
      sizes: i64[N], examples of each client.
      n_in: features.
      hidden: width of the first layer.
      **settings: of `Data`.
    """
    rng = seeded(name)
    n = int(sizes.sum())
    x = normal(rng, n, n_in, scale=1.0)
    labels = rng.integers(0, CLASSES, n)
    return Data(
        examples={"x": x, "y": labels.astype(np.int32)},
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        start=mlp_start(rng, n_in, hidden, CLASSES),
        **settings,
    )


def simulator(data: Data):
    """Our side."""
    return fedavg(cross_entropy(mlp), data), data.start


def flop(data: Data) -> float:
    """FLOP of all epochs over all examples; the first input needs no gradient."""
    n_in, hidden = data.start["dense1"].shape
    _, classes = data.start["dense2"].shape
    one = product_flop(n_in, hidden, products=2) + product_flop(hidden, classes)
    return float(data.offsets[-1]) * data.epochs * one


def log_normal_sizes(n_clients: int) -> np.ndarray:
    """Sizes of which most are small, and a few twenty times larger.

    Args:
      n_clients: how many.
    """
    logarithms = seeded("sizes").normal(3.0, 1.0, n_clients)
    sizes = np.exp(logarithms).astype(int)
    return np.clip(sizes, 1, 400)


def mlp_1000(smoke: bool) -> Data:
    """Many clients of one size."""
    return make(
        "mlp-1000",
        np.full(20 if smoke else 1000, 20),
        784,
        128,
        epochs=5,
        batch_size=20,
    )


def tiny_round(smoke: bool) -> Data:
    """So little arithmetic that the cost of a round itself is measured."""
    return make(
        "tiny-round",
        np.full(10, 20),
        32,
        16,
        batch_size=20,
        rounds=10 if smoke else 100,
    )


def ragged(smoke: bool) -> Data:
    """Padding to the longest client would be ten times the work."""
    return make(
        "ragged", log_normal_sizes(20 if smoke else 1000), 784, 128, batch_size=20
    )


def local_steps(data: Data) -> int:
    """Steps of all clients in one round."""
    sizes = np.diff(data.offsets)
    an_epoch = np.sum(-(-sizes // data.batch_size))
    return int(an_epoch * data.epochs)


def ragged_equal(smoke: bool) -> Data:
    """Clients of 40 examples, two steps each."""
    n_clients = round(local_steps(ragged(smoke)) / 2)
    return make("ragged-equal", np.full(n_clients, 40), 784, 128, batch_size=20)


MLP_1000 = Workload(
    name="mlp-1000",
    summary="1000 clients x 20 examples, MLP 784-128-10, 5 full-batch steps",
    make=mlp_1000,
    simulator=simulator,
    flop=flop,
    peers=("fedjax", "drjax", "torch", "pfl", "flower"),
)
TINY_ROUND = Workload(
    name="tiny-round",
    summary="10 clients x 20 examples, MLP 32-16-10, one step; 100 rounds a call",
    make=tiny_round,
    simulator=simulator,
    flop=flop,
    peers=("fedjax",),
)
# No peer: FedJAX's FedAvg fills a client's last batch up with its other examples, which
# is not the same work.
RAGGED = Workload(
    name="ragged",
    summary="1000 clients of log-normal sizes 1..400, MLP 784-128-10, one epoch of batches of 20",
    make=ragged,
    simulator=simulator,
    flop=flop,
)
RAGGED_EQUAL = Workload(
    name="ragged-equal",
    summary="the same number of local steps by clients of 40 examples each",
    make=ragged_equal,
    simulator=simulator,
    flop=flop,
)
