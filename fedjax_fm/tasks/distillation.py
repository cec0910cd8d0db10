"""Classification by a student that also learns from a teacher.

    (1 - lambda) CE(z_s, y) + lambda T^2 KL(softmax(z_t / T) || softmax(z_s / T))
        + beta sum_ij F_ij distance(h_s,i, h_t,j)

Hinton, Vinyals, Dean, 2015, arXiv 1503.02531; He et al., Distiller, 2021, arXiv
2109.11105.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.tasks.classification import cross_entropy
from fedjax_fm.tasks.columns import need
from fedjax_fm.tasks.distil_objectives import (
    Distance,
    compared,
    hard_targets,
    mean_square,
    soft_targets,
)
from fedjax_fm.tasks.layer_maps import LayerMap, checked_map, skip
from fedjax_fm.types import Task, Tree


class Outputs(NamedTuple):
    """What a model gives for a batch.

    Attributes:
      logits: [B, K].
      hidden: of every layer [B, T, d], the student's as wide as the teacher's; () where
        features are not compared.
    """

    logits: jax.Array
    hidden: Sequence[jax.Array] = ()


Model = Callable[[Tree, Tree, dict[str, jax.Array], Any], Outputs]


def distilled(
    student: Model,
    teacher: Callable[[Tree, dict[str, jax.Array]], Outputs],
    *,
    label: str = "label",
    share: float = 0.5,
    temperature: float = 1.0,
    features: float = 0.0,
    distance: Distance = mean_square,
    layer_map: LayerMap = skip,
    real: str | None = None,
) -> Task:
    """Cross-entropy and what a teacher says, of any two models with the same classes.

    The teacher is part of the backbone: an operand of the round, there once on each
    device, in few bits if it was quantised, and never differentiated. Families and
    tokenizers may differ; the batch then has columns for both.

    Args:
      student: `(delta, backbone, batch, key) -> Outputs`. Where widths differ, it
        projects its features, with matrices in delta.
      teacher: `(backbone, batch) -> Outputs`.
      label: the column of class numbers, i32[B] in 0..K-1.
      share: lambda, 0 <= lambda <= 1; 0 is cross-entropy alone, 0.5 to 0.9 is usual.
      temperature: T, above 0; 1 to 4 is usual.
      features: beta, at least 0; 0 compares no features.
      distance: of two layers' features.
      layer_map: which layers are compared: `skip`, `last` or `earth_mover`, of all
        distances of an example.
      real: the column bool[B, T] of tokens that count in the distance; None: all.

    Returns:
      A task with the metrics `accuracy`, and `agreement`: whether the student's
      likeliest class is the teacher's. Where the model is evaluated the loss is the
      same.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; while a
        round is traced, outputs that cannot be compared, with both shapes.

    References:
      Hinton et al. 2015, arXiv 1503.02531; He et al. 2021, arXiv 2109.11105.

    Example:
      >>> def student(delta, backbone, batch, key):
      ...     return Outputs(batch["x"] @ delta)
      >>> def teacher(backbone, batch):
      ...     return Outputs(batch["x"] @ backbone)
      >>> task = distilled(student, teacher, share=1.0)
      >>> batch = {"x": jnp.eye(2), "label": jnp.array([1, 0])}
      >>> loss, metrics = task.loss(jnp.eye(2), jnp.eye(2), batch, None)
      >>> loss.tolist(), metrics["agreement"].tolist()
      ([0.0, 0.0], [1.0, 1.0])
    """
    for name, model in (("student", student), ("teacher", teacher)):
        if not callable(model):
            raise TypeError(
                f"expected {name} to be a function that gives Outputs, got "
                f"{name}={checks.shown(model)}"
            )
    checks.text("label", label)
    checks.real("share", share, least=0, most=1)
    checks.real("temperature", temperature, above=0)
    checks.real("features", features, least=0)
    checked_map("layer_map", layer_map)

    def loss(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        columns = (label,) if real is None else (label, real)
        need(batch, columns, "the task")
        own = student(delta, backbone, batch, key)
        others = jax.lax.stop_gradient(teacher(backbone, batch))
        labels = batch[label]
        soft = soft_targets(own.logits, others.logits, temperature)
        losses = (1 - share) * cross_entropy(own.logits, labels) + share * soft
        if features > 0:
            tokens = None if real is None else batch[real]
            apart = _of_layers(own.hidden, others.hidden, tokens, distance, layer_map)
            losses = losses + features * apart
        likeliest = jnp.argmax(own.logits, axis=-1)
        agreed = likeliest == jnp.argmax(others.logits, axis=-1)
        correct = likeliest == labels
        metrics = {"accuracy": correct, "agreement": agreed}
        return losses, {k: x.astype(jnp.float32) for k, x in metrics.items()}

    return Task(loss)


def _of_layers(
    student: Sequence[jax.Array],
    teacher: Sequence[jax.Array],
    real: jax.Array | None,
    distance: Distance,
    layer_map: LayerMap,
) -> jax.Array:
    """The distance of the layers that a map pairs, f32[B]."""
    if not student or not teacher:
        raise ValueError(
            f"features are compared, but the student gives {len(student)} hidden "
            f"layers and the teacher {len(teacher)}; give them in Outputs(hidden=...)"
        )

    def row(own):
        return jnp.stack([distance(own, other, real) for other in teacher], axis=-1)

    costs = jnp.stack([row(own) for own in student], axis=-2)  # [B, m, n]
    weights = jax.vmap(layer_map)(costs)
    return jnp.sum(weights * costs, axis=(-2, -1))


def with_distillation_token(
    student: Callable[[Tree, Tree, dict[str, jax.Array], Any], Any],
    teacher: Callable[[Tree, dict[str, jax.Array]], jax.Array],
    *,
    label: str = "label",
) -> Task:
    """DeiT's loss of a student with two heads, on a class and a distillation token.

        CE(z_class, y) / 2 + CE(z_distillation, argmax z_t) / 2

    Args:
      student: `(delta, backbone, batch, key) -> (z_class, z_distillation)`, [B, K] both.
      teacher: `(backbone, batch) -> z_t`, [B, K].
      label: the column of class numbers, i32[B] in 0..K-1.

    Returns:
      A task with the metrics `accuracy`, of the mean of both heads' probabilities, and
      `agreement` of it with the teacher.

    Raises:
      TypeError: an argument is of another kind.
      ValueError: while a round is traced, heads that cannot be compared, with both
        shapes.

    References:
      Touvron et al. 2020, arXiv 2012.12877, equation (3).

    Example:
      >>> def student(delta, backbone, batch, key):
      ...     return batch["x"] @ delta[0], batch["x"] @ delta[1]
      >>> def teacher(backbone, batch):
      ...     return batch["x"] @ backbone
      >>> task = with_distillation_token(student, teacher)
      >>> batch = {"x": jnp.eye(2), "label": jnp.array([0, 1])}
      >>> loss, _ = task.loss(jnp.zeros((2, 2, 2)), jnp.eye(2), batch, None)
      >>> [round(float(x), 4) for x in loss]
      [0.6931, 0.6931]
    """
    for name, model in (("student", student), ("teacher", teacher)):
        if not callable(model):
            raise TypeError(
                f"expected {name} to be a function that gives logits, got "
                f"{name}={checks.shown(model)}"
            )
    checks.text("label", label)

    def loss(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        need(batch, (label,), "the task")
        of_class, of_teacher = student(delta, backbone, batch, key)
        compared(of_class, of_teacher)
        target = teacher(backbone, batch)
        losses = cross_entropy(of_class, batch[label]) / 2
        losses = losses + hard_targets(of_teacher, target) / 2
        both = jax.nn.softmax(of_class) + jax.nn.softmax(of_teacher)
        likeliest = jnp.argmax(both, axis=-1)
        correct = likeliest == batch[label]
        agreed = likeliest == jnp.argmax(target, axis=-1)
        metrics = {"accuracy": correct, "agreement": agreed}
        return losses, {k: x.astype(jnp.float32) for k, x in metrics.items()}

    return Task(loss)
