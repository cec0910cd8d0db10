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
    make: Callable[[bool], Data]  # make(smoke); the smoke size is tiny
    # Our side, and the first trainable tree.
    simulator: Callable[[Data], tuple[ffm.Simulator, Any]]
    flop: Callable[[Data], float]  # of the matrix products that a round needs
    peers: tuple[str, ...] = ()  # names in environments.PEERS


def fedavg(
    loss: Callable,
    data: Data,
    examples: dict[str, np.ndarray] | None = None,
    backbone: Any = (),
    **settings: Any,
) -> ffm.Simulator:
    """FedAvg with plain SGD over the whole population.

    Args:
      loss: of a task.
      data: has the clients, batches, epochs and learning rate.
      examples: other arrays than those of the data.
      backbone: frozen.
      **settings: of the simulator.
    """
    arrays = data.examples if examples is None else examples
    population = ffm.Population.from_arrays(arrays, data.offsets)
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
    """The loss of a task.

    Args:
      logits_of: `logits_of(delta, x) -> f32[B, classes]`.
    """

    def loss(delta, backbone, batch, key):
        logits = logits_of(delta, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]), {}

    return loss


def product_flop(n_in: int, n_out: int, products: int = 3) -> int:
    """FLOP of one row through a dense layer in training, 2 a weight and product.

    Args:
      n_in: width of the input.
      n_out: width of the output.
      products: forward, weight gradient and input gradient. The first layer needs no
        input gradient and a frozen one no weight gradient: 2 products.
    """
    return 2 * n_in * n_out * products


def seeded(name: str) -> np.random.Generator:
    """A generator with the same numbers for a workload on every machine.

    Args:
      name: of the workload.
    """
    return np.random.default_rng(list(name.encode()))


def normal(
    rng: np.random.Generator, *shape: int, scale: float | None = None
) -> np.ndarray:
    """Normal numbers, f32.

    Args:
      rng: draws them.
      *shape: of the array.
      scale: standard deviation; default: sqrt(2 / fan-in), as for layers with ReLU.
    """
    if scale is None:
        scale = (2 / np.prod(shape[:-1])) ** 0.5
    numbers = scale * rng.standard_normal(shape, dtype=np.float32)
    return numbers.astype(np.float32)


def dense(p: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """X W + b."""
    return product(x, p[name]) + p[f"{name}_bias"]


def mlp(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Two dense layers with a ReLU between them."""
    hidden = jnp.maximum(dense(p, "dense1", x), 0)
    return dense(p, "dense2", hidden)


def mlp_start(
    rng: np.random.Generator, n_in: int, hidden: int, classes: int
) -> dict[str, np.ndarray]:
    """Initial parameters of `mlp`.

    Args:
      rng: draws them.
      n_in: width of the input.
      hidden: width of the first layer.
      classes: width of the output.
    """
    return {
        "dense1": normal(rng, n_in, hidden),
        "dense1_bias": np.zeros(hidden, np.float32),
        "dense2": normal(rng, hidden, classes),
        "dense2_bias": np.zeros(classes, np.float32),
    }
