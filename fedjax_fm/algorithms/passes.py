"""Passes over a client's data at one delta: a gradient or a loss of many batches."""

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.local import (
    Sums,
    gradient_of,
    over_steps,
    passes_over,
    shapes_of_sums,
)
from fedjax_fm.algorithms.losses import check_trainable, masked_loss
from fedjax_fm.algorithms.reduce import mean_of
from fedjax_fm.types import ClientData, Task, Tree


def gradient_over(
    task: Task,
    delta: Tree,
    backbone: Tree,
    data: ClientData,
    key: jax.Array,
    *,
    n_batches: jax.Array,
) -> tuple[Tree, Sums]:
    """The gradient of the mean loss over a client's first batches, at one delta.

    Args:
      task: the loss.
      delta: where the gradient is taken.
      backbone: what is frozen.
      data: the client's, as the engine gives it.
      key: batch i draws from `fold_in(key, i)`.
      n_batches: i32[], how many; `passes_over(data)` are all examples, once.

    Returns:
      (gradient, metrics): each example counts by its weight, whatever batch it is in;
      the metrics are the task's at delta, as (sum, count).

    Raises:
      TypeError: a leaf of delta has no gradient.
    """
    check_trainable(delta)
    gradient = gradient_of(task)

    def step(i, total):
        batch, mask = data.batch(i)
        step_key = jax.random.fold_in(key, i)
        gradients, sums = gradient(delta, backbone, batch, mask, step_key)
        _, count = sums["loss"]
        return jax.tree.map(lambda x, g: x + count * g, total, gradients), sums

    def zeros_of(x):  # in f32, whatever the leaf is kept in
        return jnp.zeros(jnp.shape(x), jnp.float32)

    def as_leaf(x, leaf):
        return x.astype(jnp.result_type(leaf))

    zeros = jax.tree.map(zeros_of, delta)
    shapes = shapes_of_sums(task, delta, backbone, data, key)
    limited = data._replace(n_steps=n_batches)
    total, sums = over_steps(limited, step, zeros, shapes)
    mean = mean_of(total, sums["loss"][1])
    return jax.tree.map(as_leaf, mean, delta), sums


def loss_over(
    task: Task, delta: Tree, backbone: Tree, data: ClientData, key: jax.Array
) -> Sums:
    """The loss of all of a client's examples at one delta, without a gradient.

    Args:
      task: the loss.
      delta: where it is evaluated.
      backbone: what is frozen.
      data: the client's, as the engine gives it.
      key: batch i draws from `fold_in(key, i)`.

    Returns:
      The task's metrics, as (sum, count).
    """

    def step(i, nothing):
        batch, mask = data.batch(i)
        step_key = jax.random.fold_in(key, i)
        given = {"batch": batch, "mask": mask, "key": step_key}
        return nothing, masked_loss(task, delta, backbone, **given)[1]

    shapes = shapes_of_sums(task, delta, backbone, data, key)
    limited = data._replace(n_steps=passes_over(data))
    return over_steps(limited, step, (), shapes)[1]
