"""A multi-layer perceptron without biases: weights, logits, a task."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import tasks
from fedjax_fm.types import Tree


def first_weights(width: int, key: jax.Array, n_in: int = 64, classes: int = 10) -> Any:
    """Weights of He's scale, of two hidden layers.

    Args:
      width: units of a hidden layer.
      key: of the draw.
      n_in: pixels.
      classes: how many.

    Returns:
      {"w0", "w1", "w2"}.
    """
    sizes = {"w0": (n_in, width), "w1": (width, width), "w2": (width, classes)}
    found = {}
    for i, (name, size) in enumerate(sizes.items()):
        scale = math.sqrt(2 / size[0])
        found[name] = scale * jax.random.normal(jax.random.fold_in(key, i), size)
    return found


def logits(
    weights: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any
) -> jax.Array:
    """f32[n, classes].

    Args:
      weights: of `first_weights`.
      backbone: not read.
      batch: {"x": f32[n, pixels]}.
      key: not read.
    """
    hidden = jax.nn.relu(batch["x"] @ weights["w0"])
    hidden = jax.nn.relu(hidden @ weights["w1"])
    return jnp.asarray(hidden @ weights["w2"])


TASK = tasks.from_logits(logits)
# Of a simulator: the network is too small for two devices, or for several clients at once.
SMALL: dict[str, Any] = {"devices": 1, "block_size": 1}
