"""The gradient of a client's loss at one point, over its batches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.local import Sums, over_steps
from fedjax_fm.algorithms.losses import check_trainable, checked, masked_loss
from fedjax_fm.algorithms.reduce import mean_of
from fedjax_fm.types import Batches, ClientData, Task, Tree


class LocalGradient(NamedTuple):
    """The gradient of a client's mean loss at one point, over its batches."""

    task: Task
    batches: Batches

    def at(
        self, delta: Tree, backbone: Tree, data: ClientData, key: jax.Array
    ) -> tuple[Tree, Sums]:
        """The mean over the examples of all local batches, in float32.

        With `epochs=1` that is the gradient over all that a client holds.

        Args:
          delta: the point; it stays the same for all batches.
          backbone: what is frozen.
          data: the client's.
          key: batch i draws from `fold_in(key, i)`.

        Returns:
          (gradient, metrics); zeros for a client without an example.
        """
        check_trainable(delta)

        def loss(delta, batch, mask, key):
            where = {"batch": batch, "mask": mask, "key": key}
            return masked_loss(self.task, delta, backbone, **where)

        def part(i):
            batch, mask = data.batch(i)
            step_key = jax.random.fold_in(key, i)
            found, sums = jax.grad(loss, has_aux=True)(delta, batch, mask, step_key)
            _, count = sums["loss"]
            return jax.tree.map(lambda g: count * g, found), sums

        def step(i, carry):
            return carry, part(i)

        shapes = jax.eval_shape(part, jnp.int32(0))
        _, (summed, sums) = over_steps(data, step, (), shapes)
        return mean_of(summed, sums["loss"][1]), sums


def local_gradient(
    task: Task,
    *,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> LocalGradient:
    """Checks what the methods take that send gradients.

    Args:
      task: the loss.
      epochs: passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a batch.

    Raises:
      TypeError, ValueError: one of them is of another kind or makes no sense.
    """
    batches = Batches(batch_size, epochs, local_steps).checked()
    return LocalGradient(checked(task), batches)


def zeros_of(delta: Tree) -> Tree:
    """Zeros of the shape of delta, in float32.

    Args:
      delta: floating leaves.
    """
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), delta)
