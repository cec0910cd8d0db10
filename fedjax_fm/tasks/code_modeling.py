"""Modelling of codes of sound: the loss of every code that counts has the same weight."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.tasks.classification import cross_entropy
from fedjax_fm.tasks.columns import check_adapted, need
from fedjax_fm.types import Task, Tree


def code_modeling(adapted: Any, *, codes: str = "codes") -> Task:
    """Mean of -log p(code) over the codes of a sound, weighted by their number.

        loss_i = 1 / n_i sum_(t, q) -log p(c_tq | frames before t, codes before q),
        weight_i = n_i

    Args:
      adapted: from `peft.apply`; its model gives logits f32[B, T, Q, K] of codes, as
        `models.MultiScaleLM` does.
      codes: the column i32[B, T, Q]; -100 in frames behind a sound's end, which do not
        count.

    Returns:
      A task that is weighted by codes, within a batch and among clients. A code outside
      of the tables makes the loss NaN.

    Raises:
      TypeError: `adapted` is not from `peft.apply`.
      ValueError: while a round is traced, a missing column.

    References:
      Yang et al., 2023, arXiv 2310.00704.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft
      >>> config = models.MultiScaleConfig(
      ...     n_codes=5, n_books=2, hidden_size=8, num_attention_heads=2,
      ...     intermediate_size=8, global_layers=1, local_layers=1, max_frames=4,
      ... )
      >>> model = models.MultiScaleLM(config, nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> task = code_modeling(adapted)
      >>> batch = {"codes": jnp.array([[[0, 1], [4, 2], [-100, -100]]])}
      >>> loss, _ = task.loss(adapted.delta, adapted.backbone, batch, None)
      >>> loss.shape, task.weight(batch).tolist()
      ((1,), [4.0])
    """
    check_adapted(adapted)
    checks.text("codes", codes)

    def loss(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        need(batch, (codes,), "the task")
        real = batch[codes] != IGNORED
        known = jnp.where(real, batch[codes], 0)
        logits = adapted.model(delta, backbone)(known, key=key)
        losses = jnp.where(real, cross_entropy(logits, known), 0.0)
        n_codes = jnp.maximum(real.sum(axis=(1, 2)), 1)
        return losses.sum(axis=(1, 2)) / n_codes, {}

    def weight(batch: dict[str, jax.Array]) -> jax.Array:
        need(batch, (codes,), "the task")
        return (batch[codes] != IGNORED).sum(axis=(1, 2)).astype(jnp.float32)

    return Task(loss, weight)
