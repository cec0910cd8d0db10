"""Local training, the part that most methods share.

A client walks its batches with an optax optimizer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.types import ClientData, Task, Tree

# One for all rounds, or made from the (traced) number of the round: a learning-rate
# schedule over rounds.
ClientOptimizer = (
    optax.GradientTransformation | Callable[[jax.Array], optax.GradientTransformation]
)

SHOWN = 12  # leaves of a tree that an error lists


def checked(task: Task) -> Task:
    """The same task, whose loss and weights are looked at while a round is traced.

    Raises (later, while a round is traced):
      TypeError: the loss does not return (losses, metrics), or returns integers.
      ValueError: it does not return one value per example.
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
        return losses_of(task, delta, backbone, batch, key, n_examples)

    return Task(loss=loss, weight=task.weight)


def losses_of(
    task: Task,
    delta: Tree,
    backbone: Tree,
    batch: Tree,
    key: jax.Array,
    n_examples: int,
):
    """What the task's loss returns, once it is seen to be one loss, and one value of
    each metric, per example.
    """
    try:
        found = task.loss(delta, backbone, batch, key)
    except Exception as error:
        error.add_note(
            f"fedjax_fm: in the loss, which was given {_given(delta, backbone, batch)}"
        )
        raise
    if not (
        isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)
    ):
        raise TypeError(
            "expected the loss to return (losses, metrics), "
            f"float32[{n_examples}] and a dict, got {_kind(found)}; without "
            "metrics, return `losses, {}`"
        )
    losses, metrics = found
    _check_per_example("loss", losses, n_examples)
    if not jnp.issubdtype(jnp.result_type(losses), jnp.floating):
        raise TypeError(
            f"expected losses that are real numbers, got {_kind(losses)}: they have no gradient"
        )
    for name, values in metrics.items():
        if name == "loss":
            raise ValueError(
                "the loss returns a metric of the name 'loss', which is that of the loss itself"
            )
        _check_per_example(f"value of the metric {name!r}", values, n_examples)
    return losses, dict(metrics)


def weights_of(task: Task, batch: Tree, mask: jax.Array) -> jax.Array:
    """f32[B]: what each row counts; padded rows count nothing."""
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
        hint = f"the first axis is that of the {n_examples} examples, and there is no other"
    raise ValueError(
        f"expected one {what} per example: float32[{n_examples}], got {_kind(values)}; {hint}"
    )


def _kind(value: Any) -> str:
    """A value by its type and shape: float32[8], a tuple of 2, a float."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _given(delta: Tree, backbone: Tree, batch: Tree) -> str:
    parts = (("delta", delta), ("backbone", backbone), ("batch", batch))
    return "; ".join(f"{name}: {trees.described(tree, SHOWN)}" for name, tree in parts)


def check_trainable(delta: Tree) -> None:
    """Raises TypeError for a leaf that has no gradient."""
    for path, leaf in jax.tree.leaves_with_path(delta):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"delta holds {_kind(leaf)} at {trees.path_of(path)}, which "
                "cannot be trained: only floats have gradients. Put it into the "
                "backbone"
            )


def optimizer_of(
    optimizer: ClientOptimizer, round_index: jax.Array
) -> optax.GradientTransformation:
    """The client's optimizer in this round."""
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    made = optimizer(round_index)
    if not isinstance(made, optax.GradientTransformation):
        raise TypeError(
            f"expected client_optimizer(round) to make an optax optimizer, got {_kind(made)}"
        )
    return made


def client_weight(task: Task, data: ClientData) -> jax.Array:
    """f32[]: what a client counts among clients, n_k or the weights of all examples that it holds.

    It does not depend on how many of them the local steps came to see, just as n_k does not.
    """
    if task.weight is None:
        return data.n_examples.astype(jnp.float32)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        batch, mask = data.batch(i)
        return total + jnp.sum(weights_of(task, batch, mask))

    batch_size = jax.eval_shape(data.batch, jnp.int32(0))[1].shape[0]
    n_batches = -(
        -data.n_examples // batch_size
    )  # the first epoch sees every example once
    return jax.lax.fori_loop(0, n_batches, add, jnp.float32(0))


def masked_loss(
    task: Task,
    delta: Tree,
    backbone: Tree,
    batch: Tree,
    mask: jax.Array,
    key: jax.Array,
):
    """(mean loss over the real rows, {name: (weighted sum, weight)}).

    Padded rows are selected away, not multiplied by 0. Without `task.weight` the
    weights are counts.
    """
    losses, metrics = losses_of(task, delta, backbone, batch, key, mask.shape[0])
    weights = weights_of(task, batch, mask)
    count = jnp.sum(weights, dtype=jnp.float32)

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, values * weights, 0.0))

    sums = {
        name: (total(values), count)
        for name, values in {"loss": losses, **metrics}.items()
    }
    return total(losses) / jnp.where(count > 0, count, 1.0), sums


def train(
    task: Task,
    optimizer: ClientOptimizer,
    delta: Tree,
    backbone: Tree,
    data: ClientData,
    key: jax.Array,
    *,
    correct: Callable[[Tree, Tree], Tree] | None = None,
) -> tuple[Tree, dict[str, tuple[jax.Array, jax.Array]]]:
    """Runs `data.n_steps` steps from `delta` with a fresh optimizer state.

    Args:
      task, optimizer: what is minimised, and how; a function of the round gives an
        optimizer for each.
      delta, backbone: where it starts, and what is frozen.
      data, key: of the client, as the engine gives them.
      correct: `(gradients, delta) -> gradients`, before each step of the optimizer: a
        proximal term, a control variate.

    Returns:
      (delta, metrics): the loss (and the task's metrics) at the parameters that each
      batch saw, as (sum, count).
    """
    check_trainable(delta)
    optimizer = optimizer_of(optimizer, data.round)
    gradient: Callable = jax.grad(
        lambda delta, *rest: masked_loss(task, delta, *rest), has_aux=True
    )

    def step(i, carry):
        delta, state, sums = carry
        batch, mask = data.batch(i)
        gradients, part = gradient(
            delta, backbone, batch, mask, jax.random.fold_in(key, i)
        )
        if correct is not None:
            gradients = correct(gradients, delta)
        updates, state = optimizer.update(gradients, state, delta)
        return (
            optax.apply_updates(delta, updates),
            state,
            jax.tree.map(jnp.add, sums, part),
        )

    shapes = jax.eval_shape(
        lambda: masked_loss(task, delta, backbone, *data.batch(jnp.int32(0)), key)[1]
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    delta, _, sums = jax.lax.fori_loop(
        0, data.n_steps, step, (delta, optimizer.init(delta), zeros)
    )
    return delta, sums
