"""Training of APFL: a shared model and one of the client's own, mixed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm.algorithms.feddpa import Adapters
from fedjax_fm.algorithms.local import LocalTraining, Sums, optimizer_of, over_steps
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.personal.phases import named
from fedjax_fm.types import ClientData, Task, Tree


class MixedModel(NamedTuple):
    """The state of a client of `apfl`.

    Attributes:
      model: v, like the delta.
      mix: f32[], a, what v counts; w counts 1 - a.
    """

    model: Tree
    mix: jax.Array


class Mixing(NamedTuple):
    """What `apfl` was given, checked.

    Attributes:
      local: the client's training.
      mixed: the task of `Adapters(w, v, a)`.
      mix_rate: of a.
    """

    local: LocalTraining
    mixed: Task
    mix_rate: float


class Training(NamedTuple):
    """What passes from batch to batch.

    Attributes:
      shared: w_k.
      own: v_k and a_k.
      of_shared: the state of the optimizer of w_k.
      of_own: that of v_k.
    """

    shared: Tree
    own: MixedModel
    of_shared: Any
    of_own: Any


def mixture(adapters: Adapters) -> Tree:
    """The tree a v + (1 - a) w.

    Args:
      adapters: w, v and a.
    """
    shared, private, mix = adapters
    return jax.tree.map(lambda w, v: mix * v + (1 - mix) * w, shared, private)


def mixed_task(task: Task) -> Task:
    """The task of `Adapters` whose trees are mixed leaf by leaf.

    Args:
      task: of one tree.
    """

    def loss(adapters, backbone, batch, key):
        return task.loss(mixture(adapters), backbone, batch, key)

    return Task(loss, task.weight)


def train_both(
    method: Mixing,
    received: Tree,
    own: MixedModel,
    backbone: Tree,
    data: ClientData,
    *,
    key: jax.Array,
) -> tuple[Training, Sums]:
    """Local steps of w_k and v_k, and one of a_k.

    Args:
      method: what `apfl` was given.
      received: the server's w.
      own: the client's state.
      backbone: what is frozen.
      data: the client's, as the engine gives it.
      key: the client's.

    Returns:
      (models after the steps, metrics); those of the mixture are `personal_<name>`.
    """
    optimizer = optimizer_of(method.local.optimizer, data.round)

    def step(i, carry):
        slopes, sums = _slopes(method, carry, backbone, data, i, key=key)
        w, v = carry.shared, carry.own.model
        updates, of_shared = optimizer.update(slopes.shared, carry.of_shared, w)
        own_updates, of_own = optimizer.update(slopes.own.model, carry.of_own, v)
        learned = carry.own.mix - method.mix_rate * slopes.own.mix
        mix = jnp.where(i == 0, jnp.clip(learned, 0, 1), carry.own.mix)
        own = MixedModel(optax.apply_updates(v, own_updates), mix)
        w = optax.apply_updates(w, updates)
        return Training(shared=w, own=own, of_shared=of_shared, of_own=of_own), sums

    start = Training(
        shared=received,
        own=own,
        of_shared=optimizer.init(received),
        of_own=optimizer.init(own.model),
    )

    def first_sums():
        return _slopes(method, start, backbone, data, jnp.int32(0), key=key)[1]

    return over_steps(data, step, start, jax.eval_shape(first_sums))


class _Slopes(NamedTuple):
    """Gradients of one batch."""

    shared: Tree  # of f at w_k
    own: MixedModel  # of f at the mixture, with respect to v_k and a_k


def _slopes(
    method: Mixing,
    at: Training,
    backbone: Tree,
    data: ClientData,
    i: jax.Array,
    *,
    key: jax.Array,
) -> tuple[_Slopes, Sums]:
    """Gradients of batch i, and the metrics of both models."""
    mixed = method.mixed

    def loss(own, backbone, batch, key):  # the shared one is not differentiated
        adapters = Adapters(shared=at.shared, private=own.model, mix=own.mix)
        return mixed.loss(adapters, backbone, batch, key)

    batch, mask = data.batch(i)
    step_key = jax.random.fold_in(key, i)
    seen = {"batch": batch, "mask": mask, "key": step_key}
    slope = jax.grad(masked_loss, argnums=1, has_aux=True)
    shared, sums = slope(method.local.task, at.shared, backbone, **seen)
    own, own_sums = slope(Task(loss, mixed.weight), at.own, backbone, **seen)
    return _Slopes(shared, own), {**sums, **named(own_sums)}
