"""The reference model: the frozen base, or its stored log-probabilities."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_fm import checks
from fedjax_fm.preferences.pairs import COLUMNS, STORED, answer_log_probs
from fedjax_fm.tasks.columns import check_adapted, need
from fedjax_fm.types import Tree


def reference_delta(adapted: Any, reference: Tree | None, stored: bool) -> Tree | None:
    """The delta of the reference model, None where its log-probabilities are stored.

    Args:
      adapted: from `peft.apply`.
      reference: a delta of it; None: the one before training.
      stored: whether the batch has the log-probabilities.

    Returns:
      A tree like `adapted.delta`, or None.

    Raises:
      ValueError: both are given, or the reference is another tree than the model's.
    """
    if stored:
        if reference is not None:
            raise ValueError(
                "expected a reference or stored=True, got both: the columns hold the "
                "log-probabilities of one model"
            )
        return None
    found = adapted.delta if reference is None else reference
    if jax.tree.structure(found) != jax.tree.structure(adapted.delta):
        raise ValueError(
            "expected reference to be a tree like adapted.delta, such as state.delta of "
            "a run of the same adapted model"
        )
    return found


def store_reference(
    adapted: Any,
    arrays: Mapping[str, np.ndarray],
    delta: Tree | None = None,
    *,
    batch_size: int = 16,
    chunk: int = 128,
) -> dict[str, np.ndarray]:
    """The columns of pairs, and beside them the reference's log-probabilities.

    They never change, so they are computed once for a row, and `dpo(stored=True)` and
    its kin read them. n rows of T tokens take 8 n (T - 1) bytes more.

    Args:
      adapted: from `peft.apply`.
      arrays: columns of pairs, see `encode_pairs`; others are kept.
      delta: of the reference model; None: `adapted.delta`, before training.
      batch_size: pairs that are computed at once; the last batch may be shorter.
      chunk: positions whose logits are in memory at one time.

    Returns:
      {column: array}: all that was given, `chosen_reference` and `rejected_reference`,
      f32[n, T-1].

    Raises:
      TypeError, ValueError: `adapted` is not from `peft.apply`, a column is missing.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> pairs = preferences.encode_pairs([[1, 2]], [[3]], [[4, 5]], pad_token_id=0)
      >>> store_reference(adapted, pairs)["chosen_reference"].shape
      (1, 3)
    """
    check_adapted(adapted)
    need(arrays, COLUMNS, "store_reference")
    checks.whole("batch_size", batch_size, least=1)
    frozen = reference_delta(adapted, delta, stored=False)

    @jax.jit
    def score(delta: Tree, backbone: Tree, batch: dict[str, jax.Array]):
        found = answer_log_probs(adapted.model(delta, backbone), batch, chunk)
        return found.chosen, found.rejected

    n = len(arrays[COLUMNS[0]])
    parts = []
    for start in range(0, n, batch_size):
        batch = {name: arrays[name][start : start + batch_size] for name in COLUMNS}
        found = score(frozen, adapted.backbone, batch)
        parts.append([np.asarray(side) for side in found])
    columns = (np.concatenate(side) for side in zip(*parts, strict=True))
    return {**arrays, **dict(zip(STORED, columns, strict=True))}
