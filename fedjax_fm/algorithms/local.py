"""Local training, the part that most methods share.

A client walks its batches with an optax optimizer. What methods change is given to
`train`: a correction of the gradient, another gradient, a penalty on the parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.losses import (
    check_trainable,
    checked,
    kind,
    masked_loss,
    weights_of,
)
from fedjax_fm.types import Batches, ClientData, ClientOutput, Task, Tree

# One for all rounds, or made from the (traced) number of the round: a learning-rate
# schedule over rounds.
ClientOptimizer = (
    optax.GradientTransformation | Callable[[jax.Array], optax.GradientTransformation]
)

Sums = dict[
    str, tuple[jax.Array, jax.Array]
]  # metrics: {name: (sum f32[], count f32[])}


class LocalTraining(NamedTuple):
    """What a client does with its own data: checked loss, optimizer and batches."""

    task: Task
    optimizer: ClientOptimizer
    batches: Batches

    def run(
        self,
        delta: Tree,
        backbone: Tree,
        data: ClientData,
        key: jax.Array,
        **changes: Any,
    ) -> tuple[Tree, Sums]:
        """Runs `train` with this task and this optimizer.

        Args:
          delta: where it starts.
          backbone: what is frozen.
          data: the client's, as the engine gives it.
          key: the client's.
          **changes: further keywords of `train`.

        Returns:
          (delta, metrics), as `train`.
        """
        start = (delta, backbone, data, key)
        return train(self.task, self.optimizer, *start, **changes)

    def walk(
        self,
        start: tuple[Tree, Any],
        backbone: Tree,
        data: ClientData,
        key: jax.Array,
        **changes: Any,
    ) -> tuple[tuple[Tree, Any], Sums]:
        """Runs `walk` with this task and this optimizer.

        Args:
          start: (delta, the optimizer's state).
          backbone: what is frozen.
          data: the client's, as the engine gives it.
          key: the client's.
          **changes: further keywords of `walk`.

        Returns:
          ((delta, the optimizer's state), metrics), as `walk`.
        """
        given = (start, backbone, data, key)
        return walk(self.task, self.optimizer, *given, **changes)

    def with_optimizer(
        self,
        change: Callable[[optax.GradientTransformation], optax.GradientTransformation],
    ) -> "LocalTraining":
        """The same with a changed optimizer, in every round.

        Args:
          change: optimizer -> optimizer.
        """

        def of_round(round_index):
            return change(optimizer_of(self.optimizer, round_index))

        return self._replace(optimizer=of_round)

    def weight(self, data: ClientData) -> jax.Array:
        """What this client counts among clients, see `client_weight`.

        Args:
          data: the client's, as the engine gives it.

        Returns:
          f32[].
        """
        return client_weight(self.task, data)


def local_training(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> LocalTraining:
    """Checks what nearly every method takes, and keeps it together.

    Args:
      task: the loss.
      client_optimizer: of optax, or a function of the round that makes one.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      What the method's client calls.

    Raises:
      TypeError, ValueError: one of them is of another kind or makes no sense.
    """
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()
    return LocalTraining(checked(task), client_optimizer, batches)


def optimizer_of(
    optimizer: ClientOptimizer, round_index: jax.Array
) -> optax.GradientTransformation:
    """The client's optimizer in this round.

    Args:
      optimizer: of optax, or a function of the round that makes one.
      round_index: i32[], from 0.

    Returns:
      An optax optimizer.

    Raises:
      TypeError: the function makes something else.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    made = optimizer(round_index)
    if not isinstance(made, optax.GradientTransformation):
        raise TypeError(
            "expected client_optimizer(round) to make an optax optimizer, "
            f"got {kind(made)}"
        )
    return made


def client_weight(task: Task, data: ClientData) -> jax.Array:
    """What a client counts among clients: n_k, or the sum of its examples' weights.

    Like n_k, that sum is over all examples that the client has, whether or not its
    local steps reach them.

    Args:
      task: whose `weight` counts; None there counts each example as one.
      data: the client's, as the engine gives it.

    Returns:
      f32[].

    Example:
      >>> one = jnp.int32(1)
      >>> batch = {"tokens": jnp.array([5.0, 3.0])}
      >>> data = ClientData(
      ...     id=one,
      ...     round=one,
      ...     n_examples=jnp.int32(2),
      ...     n_steps=one,
      ...     batch=lambda i: (batch, jnp.ones(2, bool)),
      ...     repeat=one,
      ... )
      >>> def loss(delta, backbone, batch, key):
      ...     return delta * batch["tokens"], {}
      >>> float(client_weight(Task(loss), data))
      2.0
      >>> float(client_weight(Task(loss, lambda batch: batch["tokens"]), data))
      8.0
    """
    if task.weight is None:
        return data.n_examples.astype(jnp.float32)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        batch, mask = data.batch(i)
        return total + jnp.sum(weights_of(task, batch, mask))

    # The first epoch sees every example once.
    return jax.lax.fori_loop(0, passes_over(data), add, jnp.float32(0))


def sends_update(
    local: LocalTraining,
    weight: Callable[[ClientData], jax.Array] | None = None,
    gradient: Callable[[Task, ClientData], Callable] | None = None,
) -> Callable[[Tree, Tree], Callable[..., ClientOutput]]:
    """The client of FedAvg: trains the delta that it is sent, uploads start - end.

    Args:
      local: its training.
      weight: what the client counts; None: the weights of all its examples.
      gradient: `(task, data) -> gradient` of `train`; None: the mean loss's.

    Returns:
      `Exchange.client`; the client's state stays as it is.
    """
    weight = local.weight if weight is None else weight

    def client(backbone, message):
        def one(delta, state, data, key):
            own = None if gradient is None else gradient(local.task, data)
            trained, metrics = local.run(delta, backbone, data, key, gradient=own)
            return ClientOutput(
                upload=trees.subtract(delta, trained),
                weight=weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    return client


def over_steps(
    data: ClientData,
    step: Callable[[jax.Array, Any], tuple[Any, Tree]],
    carry: Any,
    sums: Tree,
) -> tuple[Any, Tree]:
    """The loop over a client's local steps.

    Args:
      data: says how many steps; the number is traced.
      step: `(i i32[], carry) -> (carry, what step i adds to the sums)`.
      carry: what passes from step to step.
      sums: shapes of what a step adds.

    Returns:
      (carry, sums over all steps); zeros for a client without a step.
    """

    def body(i, running):
        carry, total = running
        carry, part = step(i, carry)
        return carry, jax.tree.map(jnp.add, total, part)

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums)
    with jax.named_scope("steps"):
        return jax.lax.fori_loop(0, data.n_steps, body, (carry, zeros))


def train(
    task: Task,
    optimizer: ClientOptimizer,
    delta: Tree,
    backbone: Tree,
    data: ClientData,
    key: jax.Array,
    *,
    correct: Callable[[Tree, Tree], Tree] | None = None,
    penalty: Callable[[Tree], jax.Array] | None = None,
    gradient: Callable | None = None,
) -> tuple[Tree, Sums]:
    """Runs `data.n_steps` steps from `delta` with a fresh optimizer state.

        w <- optimizer(w, correct(grad(mean loss(w; b) + penalty(w)), w))

    Args:
      task: what is minimised.
      optimizer: of optax; a function of the round makes one for each.
      delta: where it starts, leaves of floats.
      backbone: what is frozen.
      data: the client's, as the engine gives it.
      key: the client's; step i draws from `fold_in(key, i)`.
      correct: `(gradients, delta) -> gradients`, before each step of the optimizer: a
        proximal term, a control variate.
      penalty: `delta -> f32[]`, added to the loss and to the reported one.
      gradient: `(delta, backbone, batch, mask, key) -> (gradients, sums of metrics)` in
        the place of the mean loss's; the sums have the shapes of the task's.

    Returns:
      (delta, metrics): the loss (and the task's metrics) at the parameters that each
      batch saw, as (sum, count).

    Raises:
      TypeError: a leaf of delta has no gradient.

    Example:
      FedProx's client pulls w back to where it started:

      >>> def towards_start(gradients, w):
      ...     def one(g, a, s):
      ...         return g + 0.1 * (a - s)
      ...     return jax.tree.map(one, gradients, w, start)
      >>> # train(task, optimizer, start, backbone, data, key, correct=towards_start)
    """
    check_trainable(delta)
    moments = optimizer_of(optimizer, data.round).init(delta)
    changes = {"correct": correct, "penalty": penalty, "gradient": gradient}
    start = (delta, moments)
    (delta, _), sums = walk(task, optimizer, start, backbone, data, key, **changes)
    return delta, sums


def walk(
    task: Task,
    optimizer: ClientOptimizer,
    start: tuple[Tree, Any],
    backbone: Tree,
    data: ClientData,
    key: jax.Array,
    *,
    correct: Callable[[Tree, Tree], Tree] | None = None,
    penalty: Callable[[Tree], jax.Array] | None = None,
    gradient: Callable | None = None,
) -> tuple[tuple[Tree, Any], Sums]:
    """The loop of `train`, from and to a state of the optimizer.

    Args:
      task: what is minimised.
      optimizer: of optax; a function of the round makes one for each.
      start: (delta, the optimizer's state).
      backbone: what is frozen.
      data: the client's, as the engine gives it.
      key: the client's; step i draws from `fold_in(key, i)`.
      correct: as for `train`.
      penalty: as for `train`.
      gradient: as for `train`.

    Returns:
      ((delta, the optimizer's state), metrics), as `train`.
    """
    optimizer = optimizer_of(optimizer, data.round)
    task = task if penalty is None else _penalised(task, penalty)
    gradient = gradient_of(task) if gradient is None else gradient

    def step(i, carry):
        delta, moments = carry
        batch, mask = data.batch(i)
        step_key = jax.random.fold_in(key, i)
        gradients, sums = gradient(delta, backbone, batch, mask, step_key)
        if correct is not None:
            gradients = correct(gradients, delta)
        updates, moments = optimizer.update(gradients, moments, delta)
        return (optax.apply_updates(delta, updates), moments), sums

    shapes = shapes_of_sums(task, start[0], backbone, data, key)
    return over_steps(data, step, start, shapes)


def passes_over(data: ClientData) -> jax.Array:
    """i32[]: batches of one pass over a client's data, the first of its epochs.

    Args:
      data: the client's, as the engine gives it.
    """
    _, mask = jax.eval_shape(data.batch, jnp.int32(0))
    return -(-data.n_examples // mask.shape[0])


def shapes_of_sums(
    task: Task, delta: Tree, backbone: Tree, data: ClientData, key: jax.Array
) -> Tree:
    """Shapes of what a step adds to the metrics.

    Args:
      task: the loss.
      delta: the trainable tree.
      backbone: what is frozen.
      data: the client's, as the engine gives it.
      key: any.
    """

    def first_sums():
        batch, mask = data.batch(jnp.int32(0))
        return masked_loss(task, delta, backbone, batch=batch, mask=mask, key=key)[1]

    return jax.eval_shape(first_sums)


def gradient_of(task: Task) -> Callable:
    """The gradient of the mean loss of a batch, with its metrics.

    Args:
      task: the loss.

    Returns:
      `(delta, backbone, batch, mask, key) -> (gradients, sums)`.
    """

    def loss(delta, backbone, batch, mask, key):
        return masked_loss(task, delta, backbone, batch=batch, mask=mask, key=key)

    return jax.grad(loss, has_aux=True)


def _penalised(task: Task, penalty: Callable[[Tree], jax.Array]) -> Task:
    """The task with `penalty(delta)` on every example's loss."""

    def loss(delta, backbone, batch, key):
        losses, metrics = task.loss(delta, backbone, batch, key)
        return losses + penalty(delta), metrics

    return Task(loss, task.weight)
