"""clients-1e4 to clients-1e6: one round over the whole population.

Each client has 2 examples of 8 features and does one step of logistic regression. There
is next to no arithmetic: what is measured is the time and the memory
(`peak_rss_bytes`) of a client itself.
"""

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm.experiments.bench.workload import (
    Data,
    Workload,
    fedavg,
    normal,
    product_flop,
    seeded,
)

EXAMPLES, FEATURES = 2, 8


def make(n_clients: int) -> Data:
    """Random examples with labels 0 and 1.

    Args:
      n_clients: how many.
    """
    rng = seeded("clients")
    n = n_clients * EXAMPLES
    return Data(
        examples={
            "x": normal(rng, n, FEATURES, scale=1.0),
            "y": rng.integers(0, 2, n).astype(np.float32),
        },
        offsets=np.arange(n_clients + 1) * EXAMPLES,
        start={
            "weight": np.zeros(FEATURES, np.float32),
            "bias": np.zeros((), np.float32),
        },
        batch_size=EXAMPLES,
    )


def loss(delta, backbone, batch, key):
    """Logistic loss of each example."""
    logits = jnp.sum(batch["x"] * delta["weight"], axis=-1) + delta["bias"]
    return optax.sigmoid_binary_cross_entropy(logits, batch["y"]), {}


def simulator(data: Data):
    """Our side."""
    return fedavg(loss, data), data.start


def flop(data: Data) -> float:
    """FLOP of one product forward and one for the gradient."""
    return float(data.offsets[-1]) * data.epochs * product_flop(FEATURES, 1, products=2)


def _workload(name: str, n_clients: int) -> Workload:
    summary = f"one round over all of {n_clients:,} clients, logistic regression on 2 examples"
    return Workload(
        name=name,
        summary=summary,
        make=lambda smoke: make(n_clients // 100 if smoke else n_clients),
        simulator=simulator,
        flop=flop,
    )


WORKLOADS = tuple(_workload(f"clients-1e{power}", 10**power) for power in (4, 5, 6))
