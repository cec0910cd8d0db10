"""The loss of a task, looked at while a round is traced: one number per example.

A mean as the loss, a forgotten axis or integers are refused with a sentence that says
what was expected, before anything is computed.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.types import Task, Tree

SHOWN = 12  # leaves of a tree that an error lists


def checked(task: Task) -> Task:
    """The same task, whose loss and weights are looked at while a round is traced.

    Args:
      task: the loss, as its author wrote it.

    Returns:
      A task whose loss raises the errors below while it is traced.

    Raises:
      TypeError: `task` is no Task; later, the loss does not return (losses, metrics),
        or returns integers.
      ValueError: later, it does not return one value per example.
    """
    if not isinstance(task, Task):
        hint = (
            "wrap the loss: Task(loss)"
            if callable(task)
            else "make one with Task(loss)"
        )
        raise TypeError(f"expected a Task, got task={checks.shown(task)}; {hint}")

    def loss(delta, backbone, batch, key):
        n_examples = jax.tree.leaves(batch)[0].shape[0]
        given = (task, delta, backbone, batch, key)
        return losses_of(*given, n_examples=n_examples)

    return Task(loss=loss, weight=task.weight)


def losses_of(
    task: Task,
    delta: Tree,
    backbone: Tree,
    batch: Tree,
    key: jax.Array,
    n_examples: int,
):
    """What the task's loss returns, checked.

    Args:
      task: the loss.
      delta: the trainable tree.
      backbone: the frozen one.
      batch: {name: [B, ...]}.
      key: drives dropout and the like; None where the model is evaluated.
      n_examples: B, rows of the batch.

    Returns:
      (f32[B], {name: f32[B]}): one loss, and one value of each metric, per example.

    Raises:
      TypeError: the loss returns something else, or integers.
      ValueError: it returns another number of values.
    """
    try:
        found = task.loss(delta, backbone, batch, key)
    except Exception as error:
        given = _given(delta, backbone, batch)
        note = f"fedjax_fm: in the loss, which was given {given}"
        if note not in getattr(error, "__notes__", ()):  # of nested transformations
            error.add_note(note)
        raise
    is_pair = isinstance(found, tuple) and len(found) == 2
    if not (is_pair and isinstance(found[1], Mapping)):
        raise TypeError(
            "expected the loss to return (losses, metrics), "
            f"float32[{n_examples}] and a dict, got {kind(found)}; without "
            "metrics, return `losses, {}`"
        )
    losses, metrics = found
    _check_per_example("loss", losses, n_examples)
    if not jnp.issubdtype(jnp.result_type(losses), jnp.floating):
        raise TypeError(
            f"expected losses that are real numbers, got {kind(losses)}: "
            "they have no gradient"
        )
    for name, values in metrics.items():
        if name == "loss":
            raise ValueError(
                "the loss returns a metric of the name 'loss', "
                "which is that of the loss itself"
            )
        _check_per_example(f"value of the metric {name!r}", values, n_examples)
    return losses, dict(metrics)


def weights_of(task: Task, batch: Tree, mask: jax.Array) -> jax.Array:
    """What each row of a batch counts; padded rows count nothing.

    Args:
      task: whose `weight` counts; None there counts each example as one.
      batch: {name: [B, ...]}.
      mask: bool[B], False in padded rows.

    Returns:
      f32[B].

    Raises:
      ValueError: the task's weights are not one per example.
    """
    if task.weight is None:
        return jnp.where(mask, 1.0, 0.0)
    weights = task.weight(batch)
    _check_per_example("weight", weights, mask.shape[0])
    return jnp.where(mask, jnp.asarray(weights, jnp.float32), 0.0)


def _check_per_example(what: str, values: Any, n_examples: int) -> None:
    shape = getattr(values, "shape", None)
    if shape == (n_examples,):
        return
    if shape == ():
        hint = "did you average? Return what each example gives, before the mean"
    elif (
        shape is not None
        and shape[:1] == (n_examples,)
        and all(size == 1 for size in shape[1:])
    ):
        hint = "drop the axes of length 1, as with `[:, 0]`"
    elif shape is not None and shape[:1] == (n_examples,):
        hint = "sum or average over the axes behind the first, within each example"
    else:
        hint = (
            f"the first axis is that of the {n_examples} examples, "
            "and there is no other"
        )
    raise ValueError(
        f"expected one {what} per example: float32[{n_examples}], "
        f"got {kind(values)}; {hint}"
    )


def kind(value: Any) -> str:
    """A value in words, by its type and shape: float32[8], a tuple of 2, a float.

    Args:
      value: anything.

    Returns:
      Text for an error message.
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _given(delta: Tree, backbone: Tree, batch: Tree) -> str:
    parts = (("delta", delta), ("backbone", backbone), ("batch", batch))
    return "; ".join(f"{name}: {trees.described(tree, SHOWN)}" for name, tree in parts)


def check_trainable(delta: Tree) -> None:
    """Refuses a trainable tree with a leaf that has no gradient.

    Args:
      delta: the tree.

    Raises:
      TypeError: a leaf holds no floats.
    """
    for path, leaf in jax.tree.leaves_with_path(delta):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"delta holds {kind(leaf)} at {trees.path_of(path)}, which "
                "cannot be trained: only floats have gradients. Put it into the "
                "backbone"
            )


def masked_loss(
    task: Task,
    delta: Tree,
    backbone: Tree,
    batch: Tree,
    mask: jax.Array,
    key: jax.Array,
):
    """The mean loss of a batch, over its real rows.

        sum_i w_i l_i / sum_i w_i,   w_i = 1 without `task.weight`, 0 in padded rows

    Padded rows are selected away, not multiplied by 0: NaN there does no harm.

    Args:
      task: the loss.
      delta: the trainable tree.
      backbone: the frozen one.
      batch: {name: [B, ...]}.
      mask: bool[B], False in padded rows.
      key: drives dropout and the like.

    Returns:
      (f32[], {name: (weighted sum f32[], weight f32[])}); a batch without a real row
      has a mean of 0.

    Raises:
      TypeError, ValueError: the loss does not return one number per example.

    Example:
      >>> task = Task(lambda delta, backbone, batch, key: (delta * batch["x"], {}))
      >>> batch = {"x": jnp.array([1.0, 3.0, jnp.nan])}
      >>> mask = jnp.array([True, True, False])
      >>> delta, key = jnp.float32(2), jax.random.key(0)
      >>> mean, sums = masked_loss(task, delta, (), batch, mask, key)
      >>> float(mean), [float(x) for x in sums["loss"]]
      (4.0, [8.0, 2.0])
    """
    given = (task, delta, backbone, batch, key)
    losses, metrics = losses_of(*given, n_examples=mask.shape[0])
    weights = weights_of(task, batch, mask)
    count = jnp.sum(weights, dtype=jnp.float32)

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, values * weights, 0.0))

    sums = {
        name: (total(values), count)
        for name, values in {"loss": losses, **metrics}.items()
    }
    return total(losses) / jnp.where(count > 0, count, 1.0), sums
