"""Spoken numbers dealt to clients: one voice each, and other voices that test."""

import functools
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import datasets, models
from fedjax_fm.datasets.espeak import VARIANTS
from fedjax_fm.datasets.table import Table

Arrays = dict[str, np.ndarray]


class Spoken(NamedTuple):
    """Clients of one voice each, and what tests.

    Attributes:
      clients: arrays of each.
      languages: of each client.
      test: {language: arrays} of voices that no client has.
      people: {language: arrays} of recordings of people.
    """

    clients: list[Arrays]
    languages: list[str]
    test: dict[str, Arrays]
    people: dict[str, Arrays]


def deal(
    seed: int,
    split: str,
    *,
    languages: tuple[str, ...],
    numbers: tuple[int, ...],
    voices: int,
    heard: int,
    speeds: tuple[int, ...],
    seconds: float,
) -> Spoken:
    """Draws voices for the clients of each language, and others that test.

    Args:
      seed: of the voices.
      split: "tuning" or "final", which have no variant of a voice in common.
      languages: of clients and tests.
      numbers: that are said.
      voices: of each language, one a client.
      heard: voices of each language that test.
      speeds: words a minute, of all voices.
      seconds: of a window.
    """
    there = VARIANTS[::2] if split == "tuning" else VARIANTS[1::2]
    random = np.random.default_rng(seed)
    clients, spoken_by, test = [], [], {}
    for language in languages:
        drawn = random.permutation(there)[: voices + heard].tolist()

        def said(variants: list[str], language: str = language) -> Arrays:
            how = {"numbers": numbers, "speeds": speeds, "seconds": seconds}
            each = [voice_of(language, variant, **how) for variant in variants]
            return {k: np.concatenate([one[k] for one in each]) for k in each[0]}

        clients += [said([variant]) for variant in drawn[:voices]]
        spoken_by += [language] * voices
        test[language] = said(drawn[voices:])
    people = {one: people_of(one, numbers, seconds) for one in languages}
    return Spoken(clients=clients, languages=spoken_by, test=test, people=people)


@functools.lru_cache(maxsize=256)
def voice_of(
    language: str,
    variant: str,
    *,
    numbers: tuple[int, ...],
    speeds: tuple[int, ...],
    seconds: float,
) -> Arrays:
    """What one voice says, as the model reads it."""
    how: dict[str, Any] = {"speeds": speeds, "numbers": numbers}
    table = datasets.make_spoken_numbers([language], [variant], **how)
    return arrays_of(table, numbers, seconds)


@functools.lru_cache(maxsize=16)
def people_of(language: str, numbers: tuple[int, ...], seconds: float) -> Arrays:
    """What a person says in a language, as the model reads it."""
    table = datasets.load_spoken_numbers([language])
    rows = np.flatnonzero(np.isin(table["number"], numbers))
    return arrays_of(table.select(rows), numbers, seconds)


def arrays_of(table: Table, numbers: tuple[int, ...], seconds: float) -> Arrays:
    """Windows of sound and labels; a label is the place of the number in `numbers`."""
    pairs = zip(table["sound"], table["rate"], strict=True)
    sounds = [models.resampled(sound, int(rate)) for sound, rate in pairs]
    places = {number: label for label, number in enumerate(numbers)}
    labels = [places[int(number)] for number in table["number"]]
    return {
        "input_features": models.log_mel(sounds, seconds=seconds),
        "label": np.array(labels, np.int32),
    }
