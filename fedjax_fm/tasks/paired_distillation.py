"""A student of one modality learns from a teacher of another, on pairs of both.

    (1 - lambda) distance(s_i, t_i)
        + lambda T^2 KL(softmax(cos(t_i, a) / T) || softmax(cos(s_i, a) / T))

s_i is what the student says of an image, or a sound, and t_i what the teacher says of the
text that belongs to it; a_1, ..., a_K are what the teacher says of K fixed texts, such as
the names of classes. No labels are read.

Gupta, Hoffman, Malik, 2015, Cross Modal Distillation for Supervision Transfer, arXiv
1507.00448 (features of pairs); the second term is that of Hinton, Vinyals, Dean, 2015,
arXiv 1503.02531, on similarities.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.tasks.distil_objectives import (
    Distance,
    compared,
    cosine_distance,
    soft_targets,
    unit,
)
from fedjax_fm.types import Task, Tree


def paired_distillation(
    student: Callable[[Tree, Tree, dict[str, jax.Array], Any], jax.Array],
    teacher: Callable[[Tree, dict[str, jax.Array]], jax.Array],
    *,
    anchors: Callable[[Tree], jax.Array] | None = None,
    share: float = 0.0,
    temperature: float = 0.1,
    distance: Distance = cosine_distance,
) -> Task:
    """Features of one modality that follow those of another, pair by pair.

    The teacher is part of the backbone, an operand of the round, and never
    differentiated. A batch has the columns of both modalities; the student may read its
    own alone. Where widths differ, the student projects, with a matrix in delta. With
    labels and classes that both sides have, `distilled` is the task.

    Args:
      student: `(delta, backbone, batch, key) -> f[B, d]`.
      teacher: `(backbone, batch) -> f[B, d]`.
      anchors: `backbone -> f[K, d]`, what the teacher says of K texts; None where
        `share` is 0 and no agreement is asked for.
      share: lambda, 0 <= lambda <= 1, the weight of the anchors.
      temperature: T of the similarities, above 0; cosines lie in [-1, 1], so that it is
        small.
      distance: of two features, `[B, 1, d]` each; see `cosine_distance`, `mean_square`.

    Returns:
      A task with the metrics `cosine` of student and teacher and, with anchors,
      `agreement`: whether both are nearest to the same anchor. Where the model is
      evaluated the loss is the same.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a share
        without anchors; while a round is traced, features that cannot be compared, with
        both shapes.

    References:
      Gupta et al. 2015, arXiv 1507.00448; Hinton et al. 2015, arXiv 1503.02531.

    Example:
      >>> def student(delta, backbone, batch, key):
      ...     return batch["image"] @ delta
      >>> def teacher(backbone, batch):
      ...     return backbone[batch["name"]]
      >>> task = paired_distillation(student, teacher)
      >>> batch = {"image": jnp.eye(2), "name": jnp.array([1, 0])}
      >>> loss, metrics = task.loss(jnp.eye(2), jnp.eye(2), batch, None)
      >>> loss.tolist(), metrics["cosine"].tolist()  # each has the other's name
      ([1.0, 1.0], [0.0, 0.0])
    """
    for name, model in (("student", student), ("teacher", teacher)):
        if not callable(model):
            raise TypeError(
                f"expected {name} to be a function that gives features, got "
                f"{name}={checks.shown(model)}"
            )
    if anchors is not None and not callable(anchors):
        raise TypeError(
            "expected anchors to be a function of the backbone or None, got "
            f"anchors={checks.shown(anchors)}"
        )
    checks.real("share", share, least=0, most=1)
    checks.real("temperature", temperature, above=0)
    if share > 0 and anchors is None:
        raise ValueError(f"expected anchors for share={share}, got anchors=None")

    def loss(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        said, told = compared(
            student(delta, backbone, batch, key), teacher(backbone, batch)
        )
        if said.ndim != 2:
            raise ValueError(f"expected features [B, d], got {list(said.shape)}")
        losses = (1 - share) * distance(said[:, None], told[:, None], None)
        cosine = jnp.sum(unit(said) * unit(told), axis=-1)
        metrics = {"cosine": jax.lax.stop_gradient(cosine)}
        if anchors is not None:
            near, right = _similarities(said, told, anchors(backbone))
            losses = losses + share * soft_targets(near, right, temperature)
            agreed = jnp.argmax(near, axis=-1) == jnp.argmax(right, axis=-1)
            metrics["agreement"] = agreed.astype(jnp.float32)
        return losses, metrics

    return Task(loss)


def _similarities(
    student: jax.Array, teacher: jax.Array, anchors: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The cosines f32[B, K] of both with every anchor."""
    if anchors.ndim != 2 or anchors.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"expected anchors [K, {teacher.shape[-1]}], as wide as the teacher's "
            f"features, got {list(anchors.shape)}"
        )
    fixed = unit(jax.lax.stop_gradient(anchors.astype(jnp.float32)))
    return unit(student) @ fixed.T, unit(teacher) @ fixed.T
