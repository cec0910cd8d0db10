"""Prompts, pairs of answers and questions as the arrays of a batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.models.generate import pad_prompts
from fedjax_fm.models.language_modeling import IGNORED

Ids = Sequence[int]


class Encoded(NamedTuple):
    """One answer behind its prompt.

    Attributes:
      ids: of both.
      n_prompt: tokens of the prompt.
    """

    ids: list[int]
    n_prompt: int


def encode_pairs(
    prompts: Sequence[Ids],
    chosen: Sequence[Ids],
    rejected: Sequence[Ids],
    *,
    pad_token_id: int,
    eos_token_id: int | None = None,
    length: int | None = None,
) -> dict[str, np.ndarray]:
    """Preference pairs as the columns that `dpo` and `reward_modeling` read.

    Args:
      prompts: n prompts, the token ids of each.
      chosen: n answers that were preferred.
      rejected: n answers that were not.
      pad_token_id: fills the rows on the right.
      eos_token_id: written behind every answer; None: none is.
      length: tokens of a row, T; None: as many as the longest has. Nothing is cut.

    Returns:
      {"chosen_input_ids", "chosen_attention_mask", "chosen_labels", and the same of
      "rejected"}: int32[n, T]; labels are -100 but at the answer.

    Raises:
      TypeError: a row that is no list of token ids.
      ValueError: no pair, or not as many answers as prompts; an empty prompt or answer;
        a prompt that fills the row, an answer that does not fit behind it; two answers
        that are equal and say nothing: leave such pairs out, as
        `tokenize_pairs` does.

    Example:
      >>> pairs = encode_pairs([[1, 2]], [[3]], [[4, 5]], pad_token_id=0)
      >>> pairs["chosen_input_ids"].tolist(), pairs["rejected_labels"].tolist()
      ([[1, 2, 3, 0]], [[-100, -100, 4, 5]])
    """
    checks.whole("pad_token_id", pad_token_id, least=0)
    end = [] if eos_token_id is None else [checks.whole("eos_token_id", eos_token_id)]
    counts = {len(prompts), len(chosen), len(rejected)}
    if len(counts) != 1 or not len(prompts):
        raise ValueError(
            "expected as many chosen and rejected answers as prompts, and at least "
            f"one, got {len(prompts)}, {len(chosen)} and {len(rejected)}"
        )
    rows = []
    for number, triple in enumerate(zip(prompts, chosen, rejected, strict=True)):
        prompt, *answers = (_ids(f"pair {number}", one) for one in triple)
        if answers[0] == answers[1]:
            raise ValueError(
                f"the answers of pair {number} are equal, which says nothing of a "
                "preference; leave it out, as preferences.tokenize_pairs does"
            )
        rows.append([Encoded(prompt + one + end, len(prompt)) for one in answers])
    longest = max(len(one.ids) for row in rows for one in row)
    width = longest if length is None else checks.whole("length", length, least=2)
    sides = zip(*rows, strict=True)
    found = {}
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        columns = _padded(side, width, pad_token_id)
        found |= {f"{name}_{field}": column for field, column in columns.items()}
    return found


def encode_questions(
    prompts: Sequence[Ids],
    answers: Sequence[Ids] | None = None,
    *,
    pad_token_id: int,
    eos_token_id: int | None = None,
    length: int | None = None,
) -> dict[str, np.ndarray]:
    """Prompts as the columns that `grpo` and `ppo` read, with the expected answers.

    Args:
      prompts: n prompts, the token ids of each.
      answers: n expected answers for `exact_answer`; None: none.
      pad_token_id: fills the prompts on the left.
      eos_token_id: written behind every expected answer; None: none is.
      length: tokens of a prompt, P; None: as many as the longest has. Nothing is cut.

    Returns:
      {"input_ids", "attention_mask": int32[n, P], "question": int32[n], the number of
      each row, and with answers "answer_ids": int32[n, A], -100 behind them}.

    Raises:
      TypeError: a row that is no list of token ids.
      ValueError: an empty prompt or answer, a prompt longer than `length`, or not as
        many answers as prompts.

    Example:
      >>> found = encode_questions([[1, 2], [3]], [[4], [5]], pad_token_id=0)
      >>> found["input_ids"].tolist(), found["answer_ids"].tolist()
      ([[1, 2], [0, 3]], [[4], [5]])
    """
    columns = pad_prompts(prompts, pad_token_id, length)
    columns["question"] = np.arange(len(prompts), dtype=np.int32)
    if answers is None:
        return columns
    if len(answers) != len(prompts):
        raise ValueError(
            f"expected {len(prompts)} answers, one a prompt, got {len(answers)}"
        )
    end = [] if eos_token_id is None else [checks.whole("eos_token_id", eos_token_id)]
    rows = [_ids(f"answer {number}", one) + end for number, one in enumerate(answers)]
    width = max(len(row) for row in rows)
    expected = np.full((len(rows), width), IGNORED, np.int32)
    for number, row in enumerate(rows):
        expected[number, : len(row)] = row
    return {**columns, "answer_ids": expected}


def _ids(name: str, row: Any) -> list[int]:
    """Token ids as a list, at least one."""
    ids = np.asarray(row)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(
            f"expected {name} as lists of token ids, got {row!r:.60}; encode the texts "
            "with the model's tokenizer first"
        )
    if not ids.size:
        raise ValueError(f"{name} has a prompt or an answer without a token")
    if ids.min() < 0:
        raise ValueError(f"{name} has the token id {int(ids.min())}")
    return ids.tolist()


def _padded(
    rows: Sequence[Encoded], length: int, pad_token_id: int
) -> dict[str, np.ndarray]:
    """Rows as arrays, padded on the right."""
    ids = np.full((len(rows), length), pad_token_id, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    labels = np.full((len(rows), length), IGNORED, np.int32)
    for number, row in enumerate(rows):
        n = len(row.ids)
        if row.n_prompt >= length:
            raise ValueError(
                f"the prompt of pair {number} has {row.n_prompt} tokens and fills a row "
                f"of length={length}: there is no room for an answer; shorten it"
            )
        if n > length:
            raise ValueError(
                f"pair {number} has {n} tokens with its answer, more than "
                f"length={length}; leave it out, or give a longer row"
            )
        ids[number, :n], mask[number, :n] = row.ids, 1
        labels[number, row.n_prompt : n] = row.ids[row.n_prompt :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
