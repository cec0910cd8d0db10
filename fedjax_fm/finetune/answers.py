"""What a language model answers to prompts, in batches of one shape."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedjax_fm.finetune.data import Conversation, Data
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.finetune.templates import Asked
from fedjax_fm.models.generate import generate, pad_prompts
from fedjax_fm.peft import Adapted
from fedjax_fm.types import Tree

BATCH = 4  # prompts that are answered at a time
UNIT = 32  # tokens; widths of prompts are multiples of it


def answered(
    data: Data,
    settings: Settings,
    before: tuple[Tree, Tree],
    after: tuple[Tree, Tree],
) -> list[dict[str, str]]:
    """Held-out prompts with what should be answered, and what the model says.

    Args:
      data: has the prompts.
      settings: have the length of answers.
      before: (delta, backbone) at the start.
      after: (delta, backbone) at the end.

    Returns:
      {"prompt", "wanted", "before", "after"} of each prompt.
    """
    assert data.prepared.chat is not None
    chat, prompts = data.prepared.chat, data.prompts
    questions = [messages[:-1] for messages in prompts]
    how = (chat, questions, settings.new_tokens)
    said = [answers(data.adapted, parts, *how) for parts in (before, after)]
    return [
        {
            "prompt": _shown(messages[-2]),
            "wanted": _shown(messages[-1]),
            "before": old,
            "after": new,
        }
        for messages, old, new in zip(prompts, *said, strict=True)
    ]


def _shown(message: dict[str, Any]) -> str:
    """A message's content; what is no text, such as a call of a tool, as JSON."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    said = {name: part for name, part in message.items() if name != "role"}
    return json.dumps(said, ensure_ascii=False)


def answers(
    adapted: Adapted,
    parts: tuple[Tree, Tree],
    chat: Asked,
    questions: Sequence[Conversation],
    new_tokens: int,
) -> list[str]:
    """The greedy answers to conversations that end with a question.

    Args:
      adapted: has the model's structure.
      parts: (delta, backbone).
      chat: how the model is asked; the template that was trained.
      questions: conversations, the last message not the assistant's.
      new_tokens: the most tokens of an answer.

    Returns:
      A text for each.
    """
    asked = [chat.prompt_ids(question) for question in questions]
    longest = max(len(ids) for ids in asked)
    width = room_for(longest, 0)
    answer = _answering(adapted, chat, width, new_tokens)
    texts = []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        filled = [*batch, *[batch[-1]] * (BATCH - len(batch))]
        arrays = _of_width(pad_prompts(filled, chat.pad_token_id), width, chat)
        made = answer(parts, **arrays)
        tokens, lengths = np.asarray(made.tokens), np.asarray(made.lengths)
        for row, n in list(zip(tokens, lengths, strict=True))[: len(batch)]:
            text = chat.tokenizer.decode(row[:n].tolist(), skip_special_tokens=True)
            texts.append(text.strip())
    return texts


def room_for(prompt: int, new_tokens: int) -> int:
    """Tokens of a cache, as wide as a batch of prompts and their answers.

    Args:
      prompt: tokens of the longest prompt.
      new_tokens: of an answer.
    """
    return -(-prompt // UNIT) * UNIT + new_tokens


def _of_width(arrays: dict[str, Any], width: int, chat: Asked) -> dict[str, np.ndarray]:
    """Prompts padded on the left up to one width."""
    fill = {"input_ids": chat.pad_token_id, "attention_mask": 0}
    found = {}
    for name, value in fill.items():
        array = np.asarray(arrays[name])
        room = ((0, 0), (width - array.shape[1], 0))
        found[name] = np.pad(array, room, constant_values=value)
    return found


def _answering(adapted: Adapted, chat: Asked, width: int, new_tokens: int) -> Any:
    """The compiled generation, with delta and backbone as operands."""

    @jax.jit
    def answer(parts, input_ids, attention_mask):
        return generate(
            adapted.model(*parts),
            input_ids,
            attention_mask,
            max_new_tokens=new_tokens,
            eos_token_id=chat.eos_token_ids,
            pad_token_id=chat.pad_token_id,
        )

    return answer
