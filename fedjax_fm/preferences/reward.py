"""Reward models: a score that is higher for the answer that people chose.

Christiano et al., 2017, arXiv 1706.03741; Ouyang et al., 2022, arXiv 2203.02155,
equation 1.

    loss = -log sigma(r(x, y_w) - r(x, y_l) - margin)
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.models.randomness import randomness
from fedjax_fm.preferences.dpo import smoothed
from fedjax_fm.preferences.pairs import COLUMNS, FIELDS, SIDES, both_sides
from fedjax_fm.tasks.columns import check_adapted, need
from fedjax_fm.types import Task, Tree


def reward_modeling(adapted: Any, *, margin: float = 0.0) -> Task:
    """Bradley-Terry loss of a model that scores answers.

    A constant that is added to all scores of a prompt changes nothing, so the head's
    bias has no gradient: see `calibrated`.

    Args:
      adapted: from `peft.apply`, of `with_score(model)`.
      margin: what the chosen answer is to be ahead by, at least 0.

    Returns:
      A task with the metrics `pair_accuracy` (1 where the chosen answer has the higher
      score, one half where both are equal), `margin` (the difference of the scores),
      `chosen_tokens` and `rejected_tokens`. Columns as for `dpo`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; while a
        round is traced, a model without a score, or columns that are missing.

    References:
      Bradley and Terry, 1952, Biometrika 39; Ouyang et al. 2022, arXiv 2203.02155,
      equation 1; Touvron et al. 2023, arXiv 2307.09288, equation 2 for the margin.

    Example:
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> scored = preferences.with_score(model)
      >>> adapted = peft.apply(scored, peft.lora(2, targets=["q_proj"]))
      >>> pairs = preferences.encode_pairs([[1, 2]], [[3]], [[4, 5]], pad_token_id=0)
      >>> task = reward_modeling(adapted)
      >>> loss, metrics = task.loss(adapted.delta, adapted.backbone, pairs, None)
      >>> loss.shape, sorted(metrics)[-1]
      ((1,), 'rejected_tokens')
    """
    check_adapted(adapted)
    checks.real("margin", margin, least=0)

    def losses(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        model = check_scored(adapted.model(delta, backbone))
        ids, mask, labels = both_sides(batch)
        with randomness(key):
            scores = model.rewards(ids, mask)
        chosen, rejected = jnp.split(scores, 2)
        n_tokens = (labels != -100).sum(-1).astype(jnp.float32)
        lengths = jnp.split(n_tokens, 2)
        ahead = chosen - rejected
        metrics = {
            "pair_accuracy": (1 + jnp.sign(ahead)) / 2,
            "margin": ahead,
            "chosen_tokens": lengths[0],
            "rejected_tokens": lengths[1],
        }
        return smoothed(ahead - margin), metrics

    return Task(losses)


def check_scored(model: Any) -> Any:
    """The model, if it scores answers.

    Args:
      model: a module.

    Raises:
      TypeError: it has no `rewards` and `scores`.
    """
    if not (hasattr(model, "rewards") and hasattr(model, "scores")):
        raise TypeError(
            "expected a model with a score, got "
            f"{type(model).__name__}; preferences.with_score(model) gives one"
        )
    return model


def calibrated(
    adapted: Any,
    delta: Tree,
    arrays: Mapping[str, np.ndarray],
    *,
    batch_size: int = 16,
) -> Tree:
    """A reward model whose scores have mean zero over the answers of pairs.

    The bias of the head, which pairs say nothing about, takes the mean off.

    Args:
      adapted: of `with_score(model)`.
      delta: of the trained reward model.
      arrays: columns of pairs, see `encode_pairs`.
      batch_size: pairs that are scored at once.

    Returns:
      The delta with another bias.

    Raises:
      TypeError, ValueError: a model without a score, or a head that is not trained.

    Example:
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> scored = preferences.with_score(model)
      >>> adapted = peft.apply(scored, peft.lora(2, targets=["q_proj"]))
      >>> pairs = preferences.encode_pairs([[1, 2]], [[3]], [[4, 5]], pad_token_id=0)
      >>> delta = calibrated(adapted, adapted.delta, pairs)
      >>> abs(float(pair_scores(adapted, delta, pairs).mean())) < 1e-6
      True
    """
    mean = pair_scores(adapted, delta, arrays, batch_size=batch_size).mean()
    pure = nnx.to_pure_dict(delta)
    if "score" not in pure:
        raise ValueError(
            "expected a delta with the head 'score'; train it: "
            "modules_to_save=['score']"
        )
    pure["score"]["bias"] = pure["score"]["bias"] - mean
    shifted = jax.tree.map(jnp.asarray, delta)  # a copy, whose leaves are replaced
    nnx.replace_by_pure_dict(shifted, pure)
    return shifted


def pair_scores(
    adapted: Any,
    delta: Tree,
    arrays: Mapping[str, np.ndarray],
    *,
    batch_size: int = 16,
) -> np.ndarray:
    """The scores of both answers of pairs.

    Args:
      adapted: of `with_score(model)`.
      delta: of the reward model.
      arrays: columns of pairs, see `encode_pairs`.
      batch_size: pairs that are scored at once.

    Returns:
      f32[n, 2], of the chosen and the rejected answers.

    Raises:
      TypeError, ValueError: a model without a score, a column that is missing.

    Example:
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> scored = preferences.with_score(model)
      >>> adapted = peft.apply(scored, peft.lora(2, targets=["q_proj"]))
      >>> pairs = preferences.encode_pairs([[1, 2]], [[3]], [[4, 5]], pad_token_id=0)
      >>> pair_scores(adapted, adapted.delta, pairs).shape
      (1, 2)
    """
    check_adapted(adapted)
    need(arrays, COLUMNS, "pair_scores")
    checks.whole("batch_size", batch_size, least=1)

    @jax.jit
    def score(delta: Tree, backbone: Tree, ids: jax.Array, mask: jax.Array):
        return check_scored(adapted.model(delta, backbone)).rewards(ids, mask)

    n = len(arrays[COLUMNS[0]])
    found = np.zeros((n, 2), np.float32)
    for place, side in enumerate(SIDES):
        ids, mask = (arrays[f"{side}_{field}"] for field in FIELDS[:2])
        for start in range(0, n, batch_size):
            rows = slice(start, start + batch_size)
            given = (ids[rows], mask[rows])
            found[rows, place] = score(delta, adapted.backbone, *given)
    return found
