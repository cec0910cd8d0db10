"""Speeches that a base is trained on, and three kinds of text that come one after another."""

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from fedjax_fm import datasets, models
from fedjax_fm.experiments.fedbert.speeches import word_pieces
from fedjax_fm.experiments.shared.plays import is_of_tuning, roles
from fedjax_fm.experiments.shared.sentences import Sentences, deal, of_split
from fedjax_fm.models.language_modeling import IGNORED

TASKS = ("tweets", "movies", "amazon")  # in the order in which they come
TUNING_SHARE = 0.4  # of the documents of each task
Rows = dict[str, np.ndarray]  # {"input_ids", "attention_mask", "labels"}: i32[n, T]


class Task(NamedTuple):
    """A kind of text, with clients of its own."""

    name: str
    clients: list[Rows]
    test: Rows  # of other documents


class Data(NamedTuple):
    """All texts of a seed.

    Attributes:
      workers: speeches of each worker that trains the base.
      later: further speeches, which the newer base has read as well.
      plays: speeches of the test, of the same plays.
      tasks: in their order.
    """

    workers: list[Rows]
    later: list[Rows]
    plays: Rows
    tasks: list[Task]


@functools.cache
def tokenizer(vocabulary: int) -> Tokenizer:
    """Word pieces of the tuning plays and of editorials, which are of no task.

    Args:
      vocabulary: its size.
    """
    table = datasets.load_sentiment()
    editorials = table["text"][table["domain"] == "editorials"]
    spoken = [role.speeches for role in roles().values() if is_of_tuning(role.play)]
    texts = [speech for some in spoken for speech in some]
    return word_pieces([*texts, *map(str, editorials)], vocabulary)


def rows(vocabulary: int, texts: list[str], length: int) -> Rows:
    """A row for each text, cut on the right.

    Args:
      vocabulary: of the tokenizer.
      texts: any.
      length: tokens of a row.
    """
    found = models.tokenize(tokenizer(vocabulary), texts, length)
    real = found["attention_mask"] != 0
    return {**found, "labels": np.where(real, found["input_ids"], IGNORED)}


def permuted(part: Rows, seed: int) -> Rows:
    """The same tokens, at places of any text.

    Args:
      part: texts.
      seed: of the permutation.
    """
    ids, real = part["input_ids"].copy(), part["attention_mask"] != 0
    ids[real] = np.random.default_rng(seed).permutation(ids[real])
    return {**part, "input_ids": ids, "labels": np.where(real, ids, IGNORED)}


@functools.cache
def _sentences(vocabulary: int, length: int) -> Sentences:
    """All sentences of the tasks."""
    table = datasets.load_sentiment()
    mine = table.select(np.flatnonzero(np.isin(table["domain"], TASKS)))
    arrays = rows(vocabulary, list(mine["text"]), length)
    return Sentences(arrays, np.asarray(mine["domain"]), np.asarray(mine["group"]))


def data(config: Any, seed: int, split: str) -> Data:
    """Draws speeches and documents; tuning has plays and documents of its own."""
    spoken = [
        speech
        for _, role in sorted(roles().items())
        if is_of_tuning(role.play) == (split == "tuning")
        for speech in role.speeches
        if len(speech.split()) >= config.least
    ]
    order = np.random.default_rng(seed).permutation(len(spoken))
    n, n_test = config.workers * config.speeches, config.test_speeches
    if len(order) < n_test + 2 * n:
        raise ValueError(
            f"{len(order)} speeches of at least {config.least} words, and "
            f"{n_test + 2 * n} are asked for: fewer workers or speeches"
        )
    chosen = rows(config.vocabulary, [spoken[k] for k in order], config.length)
    cuts = n_test + config.speeches * np.arange(2 * config.workers + 1)
    parts = [
        {name: x[low:high] for name, x in chosen.items()}
        for low, high in itertools.pairwise(cuts)
    ]
    return Data(
        workers=parts[: config.workers],
        later=parts[config.workers :],
        plays={name: x[:n_test] for name, x in chosen.items()},
        tasks=_tasks(config, seed, split),
    )


def _tasks(config: Any, seed: int, split: str) -> list[Task]:
    """Each task's clients, and sentences of other documents."""
    found = _sentences(config.vocabulary, config.length)
    mine = of_split(found, split, TUNING_SHARE)
    sizes = {"train": config.train, "test": config.test, "per_domain": config.clients}
    dealt = deal(found, mine, seed, **sizes)
    tasks = []
    for name in TASKS:
        own = [one for one in dealt if one.domain == name]
        tested = np.concatenate([one.test for one in own])
        clients = [found.take(one.train) for one in own]
        tasks.append(Task(name, clients, found.take(tested)))
    return tasks
