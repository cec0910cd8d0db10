"""Examples as arrays that a model reads, with counts of what was cut."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import models
from fedjax_fm.finetune import files, turns
from fedjax_fm.finetune.examples import Examples
from fedjax_fm.finetune.pairs import SIDES
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.finetune.templates import folded, opening
from fedjax_fm.finetune.turns import Fitted
from fedjax_fm.models.chat import Chat
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.models.tokens import without_padding
from fedjax_fm.runs.errors import UsageError

Arrays = dict[str, np.ndarray]
UNIT = 8  # widths are multiples of it


class Encoded(NamedTuple):
    """All examples as arrays of one width.

    Attributes:
      arrays: {column: [n, ...]}.
      usable: bool[n], false where nothing of an answer is left.
      cut: i64[n], tokens that were cut off.
      messages_cut: i64[n], earlier messages that were left out before an answer; None
        where a conversation is one example.
      lost: {why a pair cannot be used: how many}; None of other kinds, whose examples
        are cut.
    """

    arrays: Arrays
    usable: np.ndarray
    cut: np.ndarray
    messages_cut: np.ndarray | None = None
    lost: dict[str, int] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """{what happened: how often}."""
        if self.lost is not None:
            return self.lost
        found = {
            "examples cut to the longest length": int((self.cut > 0).sum()),
            "tokens cut off": int(self.cut.sum()),
        }
        lost = int((~self.usable).sum())
        if self.messages_cut is None:
            return found | {"examples whose answer was cut off whole": lost}
        return found | {
            "answers with earlier messages left out": int(
                (self.messages_cut > 0).sum()
            ),
            "earlier messages left out": int(self.messages_cut.sum()),
            "answers without room for their question": lost,
        }


def conversations(examples: Examples, chat: Chat, settings: Settings) -> Encoded:
    """Conversations in a chat's template; answers have labels.

    Args:
      examples: of kind "conversation"; with `turns` "each" one an answer.
      chat: with its template.
      settings: have the longest length, and what is an example.

    Returns:
      `input_ids`, `attention_mask`, `labels` i32[n, T].

    Raises:
      UsageError: a conversation that the template refuses, named by its row.
    """
    most = settings.max_length
    read = _whole if settings.turns == "all" else turns.fitted
    rows = []
    for place, value in enumerate(examples.values):
        messages = folded(value, settings.template)
        try:
            rows.append(read(chat, messages, most))
        except (TypeError, ValueError) as error:
            row = examples.rows[place]
            raise UsageError(f"row {row}: {error}") from error
    found = _stacked(
        [(one.ids, one.labels) for one in rows],
        [one.tokens_cut for one in rows],
        chat.pad_token_id,
        most,
    )
    if settings.turns == "all":
        return found
    left_out = np.array([one.messages_cut for one in rows], np.int64)
    return found._replace(messages_cut=left_out)


def _whole(chat: Chat, messages: list[dict[str, Any]], most: int) -> Fitted:
    """The whole conversation, all answers of which are trained, uncut."""
    ids, labels = turns.encoded(chat, messages, "all")
    cut = max(0, len(ids) - most)
    return Fitted(ids=ids, labels=labels, tokens_cut=cut, messages_cut=0)


def _stacked(
    rows: list[tuple[np.ndarray, np.ndarray]], cut: list[int], pad: int, most: int
) -> Encoded:
    """Rows of one width, cut on the right."""
    width = _width([min(len(ids), most) for ids, _ in rows], most)
    shape = (len(rows), width)
    ids, mask = np.full(shape, pad, np.int32), np.zeros(shape, np.int32)
    labels = np.full(shape, IGNORED, np.int32)
    for place, (tokens, answer) in enumerate(rows):
        n = min(len(tokens), most)
        ids[place, :n], mask[place, :n] = tokens[:n], 1
        labels[place, :n] = answer[:n]
    usable = (labels != IGNORED).any(axis=1)
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return Encoded(arrays=arrays, usable=usable, cut=np.array(cut, np.int64))


def preferred(examples: Examples, chat: Chat, settings: Settings) -> Encoded:
    """Pairs of answers behind their prompts, in a chat's template; nothing is cut.

    Args:
      examples: of kind "pairs".
      chat: with its template.
      settings: have the longest length.

    Returns:
      `chosen_input_ids`, `chosen_attention_mask`, `chosen_labels` and the same of
      "rejected", i32[n, T]. Pairs that do not fit are not usable.

    Raises:
      UsageError: a conversation that the template refuses, named by its row.
    """
    most, rows = settings.max_length, []
    for side in SIDES:
        for place, pair in enumerate(examples.values):
            messages = folded(pair.answered(side), settings.template)
            try:
                rows.append(turns.encoded(chat, messages, "last"))
            except (TypeError, ValueError) as error:
                row = examples.rows[place]
                raise UsageError(f"row {row}, {side}: {error}") from error
    n = len(examples.values)
    lengths = np.array([len(ids) for ids, _ in rows]).reshape(2, n)
    begins = np.array([_n_prompt(labels) for _, labels in rows]).reshape(2, n)
    fills = (begins >= most).any(axis=0)
    too_long = (lengths > most).any(axis=0) & ~fills
    found = _stacked(rows, [0] * len(rows), chat.pad_token_id, most)
    arrays = {
        f"{side}_{name}": column[k * n : (k + 1) * n]
        for k, side in enumerate(SIDES)
        for name, column in found.arrays.items()
    }
    lost = {
        "pairs whose prompt fills the longest length": int(fills.sum()),
        "pairs whose answer does not fit behind its prompt": int(too_long.sum()),
    }
    return Encoded(
        arrays=arrays,
        usable=np.logical_not(np.asarray(fills | too_long)),
        cut=np.zeros(n, np.int64),
        lost=lost,
    )


def _n_prompt(labels: np.ndarray) -> int:
    """Tokens before the answer."""
    answer = np.flatnonzero(labels != IGNORED)
    return int(answer[0]) if len(answer) else len(labels)


def texts(examples: Examples, chat: Chat, settings: Settings) -> Encoded:
    """Texts all of whose tokens are predicted, each ended by the end token.

    Args:
      examples: of kind "text".
      chat: has the tokenizer, its end token and, where it puts one before every text,
        its begin token.
      settings: have the longest length.

    Returns:
      `input_ids`, `attention_mask`, `labels` i32[n, T].
    """
    eos, begin = chat.eos_token_id, opening(chat)
    with without_padding(chat.tokenizer) as plain:
        encodings = plain.encode_batch(
            [begin + text for text in examples.values], add_special_tokens=False
        )
    rows, cut = [], []
    for encoding in encodings:
        ids = np.array([*encoding.ids, *([] if eos is None else [eos])], np.int32)
        rows.append((ids, ids))
        cut.append(max(0, len(ids) - settings.max_length))
    found = _stacked(rows, cut, chat.pad_token_id, settings.max_length)
    # The first token is predicted from nothing, so a text of one token has no loss.
    return found._replace(usable=found.arrays["attention_mask"].sum(axis=1) > 1)


def to_decoder(examples: Examples, tokenizer: Any, settings: Settings) -> Encoded:
    """Prompts for an encoder and answers for its decoder, of T5.

    Args:
      examples: of kind "conversation", with one prompt and one answer each.
      tokenizer: of the model; its special tokens end both.
      settings: have the longest length, of either.

    Returns:
      `input_ids`, `attention_mask` i32[n, T] and `labels` i32[n, U].

    Raises:
      UsageError: more than one prompt and one answer.
    """
    prompts, answers = [], []
    for place, value in enumerate(examples.values):
        if [message["role"] for message in value] != ["user", "assistant"]:
            raise UsageError(
                f"row {examples.rows[place]}: an encoder-decoder takes one prompt and "
                f"one answer, got {[message['role'] for message in value]}"
            )
        question, answer = folded(value, "plain")
        prompts.append(question["content"])
        answers.append(answer["content"])
    asked, cut = _tokenized(tokenizer, prompts, None, settings.max_length)
    said, cut_too = _tokenized(tokenizer, answers, None, settings.max_length)
    labels = np.where(said["attention_mask"] == 1, said["input_ids"], IGNORED)
    arrays = {**asked, "labels": labels.astype(np.int32)}
    usable = np.ones(len(prompts), bool)
    return Encoded(arrays=arrays, usable=usable, cut=cut + cut_too)


def classified(examples: Examples, tokenizer: Any, settings: Settings) -> Encoded:
    """Texts, or pairs of texts, and their classes.

    Args:
      examples: of kind "classes".
      tokenizer: of the model.
      settings: have the longest length.

    Returns:
      `input_ids`, `attention_mask` (and `token_type_ids` of pairs) i32[n, T], `label`
      i32[n].
    """
    first, second = examples.values, None
    if isinstance(first[0], tuple):
        first, second = map(list, zip(*first, strict=True))
    arrays, cut = _tokenized(tokenizer, first, second, settings.max_length)
    assert examples.labels is not None
    arrays["label"] = examples.labels
    return Encoded(arrays=arrays, usable=np.ones(len(first), bool), cut=cut)


def pictures(examples: Examples, config: Any, model: str) -> Encoded:
    """Images, normalised as the model's own processor does it, and their classes.

    Args:
      examples: of kind "classes".
      config: of the model, with the size of its images.
      model: folder or hub id, for preprocessor_config.json.

    Returns:
      `pixel_values` f32[n, h, w, c], `label` i32[n].
    """
    config = getattr(config, "vision_config", config)
    raw = files.images(examples.values, config.image_size, config.num_channels)
    mean, std = _normalisation(model)
    channels = config.num_channels
    normal = (raw - np.array(mean[:channels])) / np.array(std[:channels])
    assert examples.labels is not None
    arrays = {"pixel_values": normal.astype(np.float32), "label": examples.labels}
    n = len(raw)
    return Encoded(arrays=arrays, usable=np.ones(n, bool), cut=np.zeros(n, np.int64))


def _normalisation(model: str) -> tuple[list[float], list[float]]:
    """(mean, standard deviation) a channel; a half without preprocessor_config.json."""
    import json

    path = models.locate(model).folder / "preprocessor_config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    half = [0.5, 0.5, 0.5]
    return fields.get("image_mean", half), fields.get("image_std", half)


def _tokenized(
    tokenizer: Any, first: list[str], second: list[str] | None, most: int
) -> tuple[Arrays, np.ndarray]:
    """(arrays, tokens that were cut off); the width is that of the longest text."""
    pairs = first if second is None else list(zip(first, second, strict=True))
    with without_padding(tokenizer) as plain:
        lengths = np.array([len(one.ids) for one in plain.encode_batch(pairs)])
    width = _width(np.minimum(lengths, most).tolist(), most)
    arrays = models.tokenize(tokenizer, first, width, pairs=second)
    return arrays, np.maximum(lengths - width, 0)


def _width(lengths: list[int], most: int) -> int:
    """The longest length, rounded up, at most `most`."""
    longest = max(lengths)
    return min(most, -(-longest // UNIT) * UNIT)
