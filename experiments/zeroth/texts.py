"""Sentences of a domain, or roles of some plays, and the model that reads them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fedjax_fm as ffm
from fedjax_fm import models, peft, tasks
from fedjax_fm.experiments.shared.encoders import classifier
from fedjax_fm.experiments.shared.plays import roles
from fedjax_fm.experiments.shared.sentences import Arrays, deal_split
from fedjax_fm.models.perturbed import read_by_rows
from fedjax_fm.study.judged import joined


class Data(NamedTuple):
    """Text dealt to clients, and a model of which everything is trained."""

    train: list[Arrays]
    test: Arrays
    adapted: peft.Adapted
    task: ffm.Task


def sentiment(config: Any, seed: int, split: str) -> Data:
    """Each client has sentences of one domain."""
    clients = deal_split(config, seed, split, model=config.encoder)
    model = read_by_rows(classifier(config.encoder, seed))
    adapted = peft.apply(model, peft.full())
    return Data(
        train=[client.train for client in clients],
        test=joined([client.test for client in clients]),
        adapted=adapted,
        task=tasks.classification(adapted),
    )


def shakespeare(config: Any, seed: int, split: str) -> Data:
    """Each client has the rows of one role; tests and tuning have other plays."""
    tokenizer = models.load_tokenizer(config.decoder)
    names = sorted({role.play for role in roles().values()})
    plays = np.random.default_rng(0).permutation(names)
    mine = plays[: len(plays) // 3] if split == "tuning" else plays[len(plays) // 3 :]
    mine = np.random.default_rng(seed).permutation(mine)
    n = min(config.plays, 2 * len(mine) // 3)

    def rows_of(speeches: list[str]) -> Arrays:
        encoded = tokenizer.encode("\n\n".join(speeches))
        ids, length = np.array(encoded.ids, np.int32), config.decoder_length
        ids = ids[: len(ids) // length * length].reshape(-1, length)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}

    def largest(plays: np.ndarray, n: int) -> list[Arrays]:
        by_name = sorted(roles().items())
        inside = [role.speeches for _, role in by_name if role.play in plays]
        inside.sort(key=len, reverse=True)
        return [rows_of(speeches) for speeches in inside[:n]]

    strangers = largest(mine[n:], config.roles // 2)
    test = [{name: array[:2] for name, array in rows.items()} for rows in strangers]
    model = read_by_rows(models.from_pretrained(config.decoder))
    adapted = peft.apply(model, peft.full())
    return Data(
        train=largest(mine[:n], config.roles),
        test=joined(test),
        adapted=adapted,
        task=tasks.language_modeling(Tied(adapted)),
    )


class TiedHead(NamedTuple):
    """A decoder whose head draws its rows in blocks."""

    hidden: Callable
    head: Callable


class Tied(NamedTuple):
    """An adapted decoder with such a head."""

    adapted: peft.Adapted

    def model(self, *parts: Any) -> TiedHead:
        """The model of some parts, as `Adapted.model`.

        Args:
          *parts: delta and backbone.
        """
        decoder = self.adapted.model(*parts)
        return TiedHead(decoder.hidden, decoder.model.embed_tokens.attend)
