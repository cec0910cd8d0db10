"""What a workload is, and what the workloads share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm.experiments.bench.protocol import Data
from fedjax_fm.kernels import dense as product

__all__ = [
    "Data",
    "Workload",
    "cross_entropy",
    "fedavg",
    "normal",
    "product_flop",
    "seeded",
]


class Workload(NamedTuple):
    """One thing that is timed."""

    name: str
    summary: str
    make: Callable[[bool], Data]  # from whether the smoke size is wanted
    simulator: Callable[
        [Data], tuple[ffm.Simulator, Any]
    ]  # our side, and the first trainable tree
    flop: Callable[
        [Data], float
    ]  # of the matrix products that one round cannot do without
    peers: tuple[str, ...] = ()  # who else does it; names in environments.PEERS


def fedavg(
    loss: Callable,
    data: Data,
    examples: dict[str, np.ndarray] | None = None,
    backbone: Any = (),
    **settings: Any,
) -> ffm.Simulator:
    """FedAvg with plain SGD over the whole population, as the data say.

    `settings` go to the simulator.
    """
    population = ffm.Population.from_arrays(
        data.examples if examples is None else examples, data.offsets
    )
    algorithm = ffm.fedavg(
        ffm.Task(loss),
        optax.sgd(data.learning_rate),
        epochs=data.epochs,
        batch_size=data.batch_size,
    )
    return ffm.Simulator(
        algorithm, population, backbone=backbone, cohort_size=data.n_clients, **settings
    )


def cross_entropy(logits_of: Callable) -> Callable:
    """The task's loss of a model `logits_of(delta, x) -> f32[B, classes]`."""

    def loss(delta, backbone, batch, key):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits_of(delta, batch["x"]), batch["y"]
        ), {}

    return loss


def product_flop(n_in: int, n_out: int, products: int = 3) -> int:
    """FLOP of one row through a dense layer in training.

    Forward, weight gradient, input gradient, 2 a weight each.

    The first layer needs no input gradient and a frozen one no weight gradient: 2 products.
    """
    return 2 * n_in * n_out * products


def seeded(name: str) -> np.random.Generator:
    """The same numbers for the same workload on every machine."""
    return np.random.default_rng(list(name.encode()))


def normal(
    rng: np.random.Generator, *shape: int, scale: float | None = None
) -> np.ndarray:
    """f32 normal numbers; by default of standard deviation sqrt(2 / fan-in), as for
    layers with ReLU.
    """
    if scale is None:
        scale = (2 / np.prod(shape[:-1])) ** 0.5
    return (scale * rng.standard_normal(shape, dtype=np.float32)).astype(np.float32)


def dense(p: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """X W + b."""
    return product(x, p[name]) + p[f"{name}_bias"]


def mlp(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Two dense layers with a ReLU between them."""
    return dense(p, "dense2", jnp.maximum(dense(p, "dense1", x), 0))


def mlp_start(
    rng: np.random.Generator, n_in: int, hidden: int, classes: int
) -> dict[str, np.ndarray]:
    """First parameters of `mlp`."""
    return {
        "dense1": normal(rng, n_in, hidden),
        "dense1_bias": np.zeros(hidden, np.float32),
        "dense2": normal(rng, hidden, classes),
        "dense2_bias": np.zeros(classes, np.float32),
    }
