"""Speeches of Shakespeare's plays in tokens, dealt to clients, and two sizes of a decoder."""

import functools
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft
from fedjax_fm.experiments.gate.training import fixed_quarter
from fedjax_fm.experiments.gate_language import first_fitting
from fedjax_fm.experiments.gate_language.texts import read
from fedjax_fm.experiments.shared.conversations import Rows, pretrained
from fedjax_fm.experiments.shared.language import without_meaning
from fedjax_fm.models.chat import load_chat

SIZES = {"half": 0.5, "whole": 0.0}  # share of the middle layers that is left out


class Speeches(NamedTuple):
    """What clients train on, the same without meaning, and what tests."""

    clients: ffm.Population
    shuffled: ffm.Population
    test: Rows


def speeches(config: Any, seed: int, split: str) -> Speeches:
    """Speeches of a split; plays of the test are nowhere else.

    Args:
      config: sizes, and the length of a row and of the room for an answer.
      seed: of the texts and of their order.
      split: "tuning" or "final".
    """
    texts, chat = read("roles"), load_chat(config.model)
    tuning, own = fixed_quarter(texts.train)
    judged = texts.test
    if split == "tuning":
        own, judged = tuning, texts.validation
    wanted = config.clients * config.texts
    order = np.random.default_rng(seed).permutation(own)
    rows = first_fitting(chat, texts, order, wanted, config)
    order = np.random.default_rng(0).permutation(judged)
    tested = first_fitting(chat, texts, order, config.test, config)

    def encoded(rows: list[int]) -> Rows:
        said = [texts.say(row) for row in rows]
        return chat.encode(said, config.max_length, truncate=True)

    parts = np.array_split(np.array(rows), config.clients)
    packed = [models.pack(encoded(list(part)), config.row_length) for part in parts]
    mixed = [without_meaning(one, seed + k) for k, one in enumerate(packed)]
    return Speeches(
        clients=ffm.Population.from_clients(packed),
        shuffled=ffm.Population.from_clients(mixed),
        test=encoded(tested),
    )


@functools.cache
def decoder(name: str, size: str) -> nnx.Module:
    """The decoder, or one with half of its middle layers.

    Args:
      name: of the model.
      size: a key of `SIZES`.
    """
    whole = pretrained(name, "float32", "dense")
    dropped = SIZES[size]
    if not dropped:
        return whole
    return peft.emulated(whole, first=1, last=1, dropped=dropped).model
