"""An optimizer that remembers what gradients it was given."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import trees
from fedjax_fm.types import Tree


class Recorded(NamedTuple):
    """The state of an optimizer that adds up the gradients it is given."""

    sum: Tree
    optimizer: Any


def recording(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """The same optimizer, which also keeps the sum of what it is given.

    Args:
      optimizer: of optax.

    Returns:
      One that makes the same steps, with a `Recorded` as its state.

    Example:
      >>> recorder = recording(optax.sgd(0.1))
      >>> _, state = recorder.update(jnp.ones(2), recorder.init(jnp.zeros(2)))
      >>> state.sum.tolist()
      [1.0, 1.0]
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Recorded(zeros, optimizer.init(params))

    def update(updates, state, params=None):
        steps, moments = optimizer.update(updates, state.optimizer, params)
        return steps, Recorded(trees.add(state.sum, updates), moments)

    return optax.GradientTransformation(init, update)
