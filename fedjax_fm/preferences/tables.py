"""Tables of preference pairs and of checkable questions, as batches and as controls."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.datasets.reasoning import check
from fedjax_fm.datasets.table import Table, text_column
from fedjax_fm.models.tokens import backend, without_padding
from fedjax_fm.preferences.encode import encode_pairs, encode_questions

_SIDES = ("chosen", "rejected")


class EncodedTable(NamedTuple):
    """Columns of the rows that could be encoded.

    Attributes:
      arrays: {column: [n, ...]}, see `encode_pairs` and `encode_questions`.
      rows: int64[n], which rows of the table they are, for columns such as the client.
      dropped: {reason: rows}.
    """

    arrays: dict[str, np.ndarray]
    rows: np.ndarray
    dropped: dict[str, int]


def tokenize_pairs(
    table: Table,
    tokenizer: Any,
    *,
    length: int,
    pad_token_id: int,
    eos_token_id: int | None = None,
    template: str = "{prompt}\n",
) -> EncodedTable:
    r"""Pairs of texts as the columns that `dpo` and `reward_modeling` read.

    Left out and counted: `equal`, answers that are one text or one list of tokens;
    `prompt_fills`, a prompt that leaves no room for an answer; `too_long`, an answer
    that does not fit; `empty`, an answer without a token. Nothing is cut.

    Args:
      table: with `prompt`, `chosen` and `rejected`, such as `datasets.rated_pairs` or
        the benchmark "fedllm/chatbot-pa" gives.
      tokenizer: of the model, of `tokenizers` or a fast one of transformers.
      length: tokens of a row.
      pad_token_id: fills the rows on the right.
      eos_token_id: written behind every answer; None: none is.
      template: what the model reads before an answer; `{prompt}` stands for the prompt.

    Returns:
      `EncodedTable`.

    Raises:
      TypeError, ValueError: a template without {prompt}, or no row that is left.

    Example:
      >>> from tokenizers import Tokenizer, models, pre_tokenizers
      >>> words = models.WordLevel({"?": 0, "up": 1, "or": 2, "down": 3}, "?")
      >>> tokenizer = Tokenizer(words)
      >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
      >>> columns = {"prompt": ["up or"], "chosen": ["down"], "rejected": ["up up"]}
      >>> table = Table({k: np.array(v, object) for k, v in columns.items()}, {})
      >>> found = tokenize_pairs(table, tokenizer, length=4, pad_token_id=0)
      >>> found.arrays["rejected_input_ids"].tolist()
      [[1, 2, 1, 1]]
    """
    _check_template(template)
    checks.whole("length", length, least=2)
    encode = _encoder(tokenizer)
    n_end = 0 if eos_token_id is None else 1
    kept, dropped = [], Counter()
    for row in range(len(table)):
        prompt = encode(template.replace("{prompt}", str(table["prompt"][row])))
        answers = [encode(table[side][row]) for side in _SIDES]
        reason = _why_left_out(prompt, answers, length - n_end)
        if reason is None:
            kept.append((row, prompt, *answers))
        else:
            dropped[reason] += 1
    if not kept:
        raise ValueError(f"no pair of {len(table)} can be used: {dict(dropped)}")
    rows, prompts, chosen, rejected = zip(*kept, strict=True)
    arrays = encode_pairs(
        prompts,
        chosen,
        rejected,
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_id,
        length=length,
    )
    return EncodedTable(arrays, np.array(rows, np.int64), dict(dropped))


def tokenize_questions(
    table: Table,
    tokenizer: Any,
    *,
    length: int,
    pad_token_id: int,
    eos_token_id: int | None = None,
    template: str = "{prompt}\n",
) -> EncodedTable:
    r"""Questions with one right answer as the columns that `grpo` reads.

    The column `question` is the row of the table, as `reasoning_check` expects.

    Args:
      table: with `prompt` and `answer`, such as `datasets.make_reasoning` gives.
      tokenizer: of the model.
      length: tokens of a prompt; longer ones are left out and counted as `too_long`.
      pad_token_id: fills the prompts on the left.
      eos_token_id: written behind every expected answer; None: none is.
      template: what the model reads; `{prompt}` stands for the question.

    Returns:
      `EncodedTable`.

    Raises:
      TypeError, ValueError: a template without {prompt}, or no row that is left.

    Example:
      >>> from tokenizers import Tokenizer, models, pre_tokenizers
      >>> words = models.WordLevel({"?": 0, "up": 1, "or": 2, "down": 3}, "?")
      >>> tokenizer = Tokenizer(words)
      >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
      >>> columns = {"prompt": ["up or"], "answer": ["down"]}
      >>> table = Table({k: np.array(v, object) for k, v in columns.items()}, {})
      >>> found = tokenize_questions(table, tokenizer, length=3, pad_token_id=0)
      >>> found.arrays["input_ids"].tolist(), found.arrays["answer_ids"].tolist()
      ([[0, 1, 2]], [[3]])
    """
    _check_template(template)
    checks.whole("length", length, least=1)
    encode = _encoder(tokenizer)
    texts = [template.replace("{prompt}", str(one)) for one in table["prompt"]]
    prompts = [encode(text) for text in texts]
    answers = [encode(answer) for answer in table["answer"]]
    rows = [row for row, ids in enumerate(prompts) if len(ids) <= length]
    dropped = {"too_long": len(prompts) - len(rows)}
    if not rows:
        raise ValueError(f"no question of {len(table)} fits into length={length}")
    arrays = encode_questions(
        [prompts[row] for row in rows],
        [answers[row] for row in rows],
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_id,
        length=length,
    )
    arrays["question"] = np.array(rows, np.int32)
    return EncodedTable(arrays, np.array(rows, np.int64), dropped)


def reasoning_check(table: Table) -> Callable[[str, int], float]:
    """The exact checker of a table of questions, for `checked_answers`.

    Args:
      table: of `datasets.make_reasoning`, or rows of it.

    Returns:
      `(answer, row) -> 1.0 or 0.0`. It depends on the answer alone, so a reward is the
      same each time.

    Example:
      >>> from fedjax_fm import datasets
      >>> table = datasets.make_reasoning(2, ["coin"])
      >>> is_right = reasoning_check(table)
      >>> is_right(table["answer"][0], 0), is_right("perhaps", 0)
      (1.0, 0.0)
    """

    def is_right(answer: str, row: int) -> float:
        task, expected = str(table["task"][row]), table["answer"][row]
        return float(check(task, answer, expected).is_right)

    return is_right


def shuffled_pairs(table: Table, seed: int = 0) -> Table:
    """A control: which answer of a pair is the chosen one is drawn.

    Args:
      table: with `chosen` and `rejected`.
      seed: of the draws.

    Returns:
      The table with about half of its pairs the other way round.

    Example:
      >>> columns = {"chosen": np.array(["a"] * 9), "rejected": np.array(["b"] * 9)}
      >>> set(shuffled_pairs(Table(columns, {}))["chosen"].tolist()) == {"a", "b"}
      True
    """
    checks.whole("seed", seed, least=0)
    turned = np.random.default_rng(seed).random(len(table)) < 0.5
    chosen, rejected = (table[side].tolist() for side in _SIDES)
    both = [
        (worse, better) if turn else (better, worse)
        for better, worse, turn in zip(chosen, rejected, turned, strict=True)
    ]
    sides = {
        side: text_column([pair[place] for pair in both])
        for place, side in enumerate(_SIDES)
    }
    columns = {name: sides.get(name, table[name]) for name in table.columns}
    return Table(columns, {**table.provenance, "control": f"shuffled, seed {seed}"})


def length_accuracy(table: Table, length: Callable[[str], int] | None = None) -> float:
    """A control: pairs of which the longer answer is the chosen one.

    Args:
      table: with `chosen` and `rejected`.
      length: of an answer; None: its words, by white space.

    Returns:
      Their share; equal lengths count half.

    Example:
      >>> sides = {"chosen": ["a b", "c"], "rejected": ["a", "d e f"]}
      >>> columns = {name: np.array(texts) for name, texts in sides.items()}
      >>> length_accuracy(Table(columns, {}))
      0.5
    """
    count = _words if length is None else length
    sides = [[count(text) for text in table[side].tolist()] for side in _SIDES]
    longer = np.sign(np.subtract(*np.array(sides)))
    return float(((1 + longer) / 2).mean())


def _words(text: str) -> int:
    """Words of a text, by white space."""
    return len(text.split())


def _encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Text to ids, without special tokens."""

    def encode(text: str) -> list[int]:
        with without_padding(backend(tokenizer)) as inner:
            return inner.encode(text, add_special_tokens=False).ids

    return encode


def _why_left_out(prompt: list[int], answers: list[list[int]], room: int) -> str | None:
    """Why a pair is left out, in a word; None where it can be used."""
    if answers[0] == answers[1]:
        return "equal"
    if not prompt or not all(answers):
        return "empty"
    if len(prompt) >= room:
        return "prompt_fills"
    if len(prompt) + max(map(len, answers)) > room:
        return "too_long"
    return None


def _check_template(template: str) -> None:
    """Raises unless the template has a place for the prompt."""
    if "{prompt}" not in checks.text("template", template):
        raise ValueError(
            f"expected {{prompt}} in the template, got template={template!r}"
        )
