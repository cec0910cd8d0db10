"""What an answer is worth: checked exactly, scored by a model, or its length.

A reward is `(backbone, batch, rollouts) -> f32[R]`. The batch has the columns of the
prompts, repeated for the answers of a group.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.preferences.reward import check_scored
from fedjax_fm.preferences.rollouts import Rollouts
from fedjax_fm.tasks.columns import check_adapted, need
from fedjax_fm.types import Tree

Reward = Callable[[Tree, dict[str, jax.Array], Rollouts], jax.Array]


def exact_answer(column: str = "answer_ids") -> Reward:
    """1 where an answer has exactly the expected tokens, its end among them, else 0.

    Args:
      column: i32[B, A] of the batch, the expected tokens, -100 behind them;
        `encode_questions` makes it.

    Returns:
      A reward.

    Raises:
      TypeError: a column that is no text; while a round is traced, ValueError where it
        is missing.

    Example:
      >>> from fedjax_fm.preferences.rollouts import Rollouts
      >>> ids = jnp.array([[7, 4, 2], [7, 4, 4]])
      >>> found = Rollouts(
      ...     input_ids=ids,
      ...     attention_mask=jnp.ones_like(ids),
      ...     labels=ids.at[:, 0].set(-100),
      ...     log_probs=jnp.zeros((2, 2)),
      ...     mask=jnp.ones((2, 2), bool),
      ... )
      >>> exact_answer()((), {"answer_ids": jnp.array([[4, 2], [4, 2]])}, found).tolist()
      [1.0, 0.0]
    """
    checks.text("column", column)

    def reward(backbone: Tree, batch: dict[str, jax.Array], rollouts: Rollouts):
        need(batch, (column,), "the reward exact_answer")
        expected, n_new = batch[column], rollouts.mask.shape[1]
        written = rollouts.labels[:, -n_new:]
        longest = max(n_new, expected.shape[1])
        written, expected = (
            jnp.pad(x, ((0, 0), (0, longest - x.shape[1])), constant_values=IGNORED)
            for x in (written, expected)
        )
        return (written == expected).all(axis=1).astype(jnp.float32)

    return reward


def checked_answers(
    tokenizer: Any,
    check: Callable[[str, int], float],
    column: str = "question",
) -> Reward:
    """What a function on the host says of an answer's text, such as an exact checker.

    Args:
      tokenizer: of the model; makes text of ids, special tokens left out.
      check: `(answer, number of the question) -> number`; called once an answer, in any
        order and perhaps more than once, so it must depend on its arguments alone.
      column: i32[B] of the batch, the number of each row's question.

    Returns:
      A reward.

    Raises:
      TypeError: an argument is of another kind; while a round runs, whatever `check`
        raises, and ValueError for a number that is not finite.

    Example:
      >>> from fedjax_fm import datasets
      >>> from fedjax_fm.datasets.reasoning import check
      >>> table = datasets.make_reasoning(4, ["coin"])
      >>> def is_right(answer: str, row: int) -> float:
      ...     task, expected = str(table["task"][row]), table["answer"][row]
      ...     return float(check(task, answer, expected).is_right)
      >>> is_right("yes.", 0) + is_right("no", 0)
      1.0
    """
    checks.text("column", column)
    for name, value in (("check", check), ("decode", getattr(tokenizer, "decode", 0))):
        if not callable(value):
            raise TypeError(
                "expected a tokenizer with decode(ids) and check as a function (answer, "
                f"number) -> number, got {name}={checks.shown(value)}"
            )

    def one(ids: Sequence[int], question: int) -> float:
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        return float(checks.real("the checker's reward", check(text, question)))

    def on_host(labels: np.ndarray, questions: np.ndarray) -> np.ndarray:
        labels, questions = np.asarray(labels), np.asarray(questions)
        rows = labels.reshape(-1, labels.shape[-1])
        found = [
            one(row[row != IGNORED].tolist(), int(question))
            for row, question in zip(rows, questions.reshape(-1), strict=True)
        ]
        return np.array(found, np.float32).reshape(questions.shape)

    def reward(backbone: Tree, batch: dict[str, jax.Array], rollouts: Rollouts):
        need(batch, (column,), "the reward checked_answers")
        questions = batch[column]
        shape = jax.ShapeDtypeStruct(questions.shape, jnp.float32)
        labels = rollouts.labels[:, -rollouts.mask.shape[1] :]
        return jax.pure_callback(
            on_host, shape, labels, questions, vmap_method="broadcast_all"
        )

    return reward


def scored_by(adapted: Any, delta: Tree | None = None) -> Reward:
    """The score of a reward model that shares the policy's frozen backbone.

    Args:
      adapted: of `with_score(model)`, adapted by the same method as the policy, so that
        both have one backbone.
      delta: of the trained reward model; None: `adapted.delta`. A constant of the
        program, small where it is adapters and a head.

    Returns:
      A reward.

    Raises:
      TypeError: `adapted` is not from `peft.apply`; while a round is traced, ValueError
        where the backbones differ.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> scored = preferences.with_score(model)
      >>> adapted = peft.apply(scored, peft.lora(2, targets=["q_proj"]))
      >>> reward = scored_by(adapted)
    """
    check_adapted(adapted)
    trained = adapted.delta if delta is None else delta

    def reward(backbone: Tree, batch: dict[str, jax.Array], rollouts: Rollouts):
        if jax.tree.structure(backbone) != jax.tree.structure(adapted.backbone):
            raise ValueError(
                "the reward model has another backbone than the policy: adapt both from "
                "with_score(model) of one model, by the same method"
            )
        model = check_scored(adapted.model(trained, backbone))
        return model.rewards(rollouts.input_ids, rollouts.attention_mask)

    return reward


def length_reward(
    backbone: Tree, batch: dict[str, jax.Array], rollouts: Rollouts
) -> jax.Array:
    """The share of the allowed tokens that an answer has: a control that knows no more.

    Args:
      backbone: not read.
      batch: not read.
      rollouts: R answers of at most T tokens.

    Returns:
      f32[R], length / T.

    Example:
      >>> from fedjax_fm.preferences.rollouts import Rollouts
      >>> ids = jnp.zeros((1, 5), jnp.int32)
      >>> mask = jnp.array([[True, True, False, False]])
      >>> found = Rollouts(
      ...     input_ids=ids, attention_mask=ids, labels=ids,
      ...     log_probs=jnp.zeros((1, 4)), mask=mask,
      ... )
      >>> length_reward((), {}, found).tolist()
      [0.5]
    """
    return rollouts.lengths.astype(jnp.float32) / rollouts.mask.shape[1]
