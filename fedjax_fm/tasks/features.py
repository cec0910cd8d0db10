"""Features of language models: one vector for each row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm.models.classifier import mean_of_real
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.models.randomness import randomness
from fedjax_fm.tasks.columns import check_adapted, need
from fedjax_fm.tasks.language_modeling import (
    check_model,
    columns_of,
    hidden_of_targets,
)
from fedjax_fm.types import Tree


def language_features(adapted: Any) -> Callable[..., jax.Array]:
    """The mean of the last hidden states over the tokens of a row that count.

    Tokens count whose label is not -100, those of the response: as for
    `language_modeling`, whose columns the batches have. It is what a method like `moon`
    compares between models.

    Args:
      adapted: from `peft.apply`; its model has `hidden`, as all language models of
        `fedjax_fm.models` have.

    Returns:
      `(delta, backbone, batch, key) -> f32[B, d]`; zero in a row without such a token.

    Raises:
      TypeError: `adapted` is not from `peft.apply`; while a round is traced, a model
        without `hidden`.
      ValueError: while a round is traced, a missing column.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> features = language_features(adapted)
      >>> ids = jnp.array([[1, 2, 3, 4]])
      >>> batch = {"input_ids": ids, "attention_mask": ids > 0, "labels": ids}
      >>> features(adapted.delta, adapted.backbone, batch, None).shape
      (1, 8)
    """
    check_adapted(adapted)

    def features(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        model = adapted.model(delta, backbone)
        check_model(model)
        need(batch, columns_of(model), "the features")
        counts = batch["labels"] != IGNORED
        with randomness(key):
            if hasattr(model, "shift_right"):
                hidden = hidden_of_targets(model, batch)
            else:
                mask = batch["attention_mask"]
                hidden = model.hidden(batch["input_ids"], mask)
                counts = counts & (mask != 0)
        return mean_of_real(hidden.astype(jnp.float32), counts)

    return features
