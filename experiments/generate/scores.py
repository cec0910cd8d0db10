"""What an arm's model is worth: perplexity on three kinds of text, and what it writes."""

import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from fedjax_fm.evaluation import TokenLosses, rouge_l
from fedjax_fm.experiments.generate.setup import Setup, joined
from fedjax_fm.experiments.generate.sources import Conversation
from fedjax_fm.models.generate import generate, pad_prompts
from fedjax_fm.types import Tree

SHOWN = 3  # prompts whose answers stand in the report
BATCH = 8  # prompts answered at a time


def perplexities(setup: Setup, params: Tree) -> dict[str, np.ndarray]:
    """{PART_nll, PART_tokens}, one entry per text, for seen and unseen clients and text of nobody."""
    data, arrays = setup.data, {}
    for name, rows in (("seen", joined(data.seen)), ("unseen", joined(data.unseen)), ("elsewhere", data.elsewhere)):
        arrays |= as_arrays(name, setup.perplexity(params, rows))
    return arrays


def as_arrays(name: str, losses: TokenLosses) -> dict[str, np.ndarray]:
    """Under the names that the report reads."""
    return {f"{name}_nll": losses.nll, f"{name}_tokens": losses.tokens}


def asked(prompt: Conversation) -> str:
    """What a reader of the report needs to see of it."""
    return "\n".join(str(message.get("input") or message["content"]) for message in prompt[:-1])


def answers(setup: Setup, params: Tree) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """({"answers", "prompts" of those shown, "generated_tokens_per_second"}, {"rouge_l"} if prompts are scored).

    Greedy. The speed is that of the last batch, after compilation, one client's model on all devices.
    """
    data, config = setup.data, setup.config
    prompts = pad_prompts([data.chat.prompt_ids(prompt[:-1]) for prompt in data.prompts], data.chat.pad_token_id)
    width, eos, pad = prompts["input_ids"].shape[1], data.chat.eos_token_ids, data.chat.pad_token_id

    @jax.jit
    def answer(params, input_ids, attention_mask):
        model = nnx.merge(setup.graphdef, *params)
        cache = model.empty_cache(len(input_ids), width + config.new_tokens)
        return generate(
            model.next_logits, input_ids, attention_mask, cache, max_new_tokens=config.new_tokens,
            eos_token_id=eos, pad_token_id=pad,
        )  # fmt: skip

    texts = []
    n = len(data.prompts)
    rows = np.resize(np.arange(n), -(-n // BATCH) * BATCH).reshape(-1, BATCH)
    for batch in rows:
        made = answer(params, **{name: array[batch] for name, array in prompts.items()})
        for row, length in zip(np.asarray(made.tokens), np.asarray(made.lengths), strict=True):
            texts.append(data.chat.tokenizer.decode(list(map(int, row[:length])), skip_special_tokens=True).strip())
    started = time.perf_counter()
    made = jax.block_until_ready(answer(params, **{name: array[rows[-1]] for name, array in prompts.items()}))
    speed = float(np.asarray(made.lengths).sum() / (time.perf_counter() - started))
    numbers = {
        "answers": texts[:SHOWN],
        "prompts": [[asked(prompt), str(prompt[-1]["content"])] for prompt in data.prompts[:SHOWN]],
        "generated_tokens_per_second": speed,
    }
    if not config.rouge_prompts:
        return numbers, {}
    references = [str(prompt[-1]["content"]) for prompt in data.prompts]
    scored = list(zip(texts, references, strict=False))[: config.rouge_prompts]
    return numbers, {"rouge_l": np.array([rouge_l(text, reference) for text, reference in scored])}
