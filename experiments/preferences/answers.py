"""What a model answers, beside the model that it started from."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import evaluation, preferences, study
from fedjax_fm.evaluation import judges
from fedjax_fm.experiments.preferences.pairs import messages
from fedjax_fm.models import pad_prompts
from fedjax_fm.types import Tree

Found = tuple[dict[str, float], str]


def answer_scores(run: study.Run, delta: Tree, start: Tree) -> Found:
    """Win rate, tokens and divergence of answers to held-out prompts.

    Args:
      run: has the prompts.
      delta: of the model that is scored.
      start: of the one that it is compared with.

    Returns:
      ({score: number}, the win rate in words, lengths beside it).
    """
    data, config = run.data, run.config
    n = min(config.prompts, len(data.texts))
    prompts = [str(text) for text in data.texts["prompt"][:n]]
    rows = [data.chat.prompt_ids(messages(text)) for text in prompts]
    own, others = (_greedy(run, one, rows) for one in (delta, start))
    pairs = [
        judges.Pair(
            prompt=prompts[i],
            a=own[i],
            b=others[i],
            reference=str(data.texts["chosen"][i]),
        )
        for i in range(n)
    ]
    rate = judges.win_rate(judges.compare(judges.rouge_judge(), pairs))
    tokens, apart = drawn_answers(run, delta, start, rows)
    found = {"win_rate": rate.controlled, "tokens": tokens, "kl": apart}
    return found, str(rate)


def drawn_answers(
    run: study.Run, delta: Tree, start: Tree, rows: list[list[int]]
) -> tuple[float, float]:
    """Mean tokens of drawn answers, and their nats from the first stage.

    Args:
      run: has the model.
      delta: of the model that answers.
      start: of the reference.
      rows: prompts in tokens.
    """
    data, config = run.data, run.config
    adapted, chat = data.adapted, data.chat
    padded = pad_prompts(rows, chat.pad_token_id)
    how = preferences.writing(
        config.new_tokens,
        eos_token_id=chat.eos_token_id,
        pad_token_id=chat.pad_token_id,
    )

    @jax.jit
    def draw(delta: Tree, start: Tree, backbone: Tree, key: jax.Array):
        model = adapted.model(delta, backbone)
        ids, mask = padded["input_ids"], padded["attention_mask"]
        answers = preferences.roll_out(
            model, jnp.asarray(ids), jnp.asarray(mask), how, key
        )
        other, _ = preferences.token_log_probs(
            adapted.model(start, backbone),
            answers.input_ids,
            answers.attention_mask,
            answers.labels,
        )
        reference = other[:, -config.new_tokens :]
        apart = jnp.where(answers.mask, answers.log_probs - reference, 0.0)
        return answers.lengths, apart.sum(axis=1)

    key = jax.random.key(run.seed)
    lengths, apart = draw(delta, start, adapted.backbone, key)
    return float(np.mean(lengths)), float(np.mean(apart))


def _greedy(run: study.Run, delta: Tree, rows: list[list[int]]) -> list[str]:
    """The likeliest answers as texts."""
    chat, config = run.data.chat, run.config
    return evaluation.generate_until(
        run.data.adapted.model(delta),
        rows,
        chat.tokenizer,
        max_gen_toks=config.new_tokens,
        eos_token_id=chat.eos_token_id,
    )
