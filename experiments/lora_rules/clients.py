"""Clients of the Brown corpus, each with its own mix of genres.

documents --+-- a fixed quarter, for tuning (no seed of the study sees it)
            +-- the others, for all seeds
either, anew for every seed --+-- a quarter: sentences that judge clients
                              +-- the rest: sentences that they train on
"""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import systems
from fedjax_fm.experiments.gate.tasks import KINDS, read
from fedjax_fm.experiments.gate.training import fixed_quarter
from fedjax_fm.experiments.shared.tail import (
    frozen_layers,
    hidden_states,
    preparation_of,
)
from fedjax_fm.experiments.shared.words import TASK, Arrays, TokenTail

JUDGING = 0.25  # of the documents
LAYERS = 1  # the last ones, which read what the others have computed


class Dealt(NamedTuple):
    """Sentences as the last layer reads them.

    Arrays hold `hidden`, `attention_mask` and `labels`.
    """

    model: TokenTail  # with a head of random values, the same for all arms of a seed
    train: list[Arrays]  # of each client
    own: list[Arrays]  # that judge the same clients
    public: Arrays  # of the tuning documents, of no client
    preparation: systems.Preparation  # of the sentences that clients train on


def deal(config: Any, seed: int, split: str) -> Dealt:
    """Deals a split's sentences, and computes the frozen layers once.

    Args:
      config: of the study.
      seed: of documents, mixes, sentences and the head.
      split: "tuning" or "final".
    """
    rows = read(TASK)
    document = rows.table["document"]
    tuning, own = fixed_quarter(np.unique(document[rows.train]))
    random = np.random.default_rng(seed)
    mine = random.permutation(tuning if split == "tuning" else own)
    n_judging = round(JUDGING * len(mine))
    letters = np.array([name[1] for name in document])  # "ca01" is of genre a
    genres = np.unique(letters, return_inverse=True)[1]

    def sentences(documents: np.ndarray) -> np.ndarray:
        return rows.train[np.isin(document[rows.train], documents)]

    judging, training = sentences(mine[:n_judging]), sentences(mine[n_judging:])
    chosen = []
    for _ in range(config.clients):
        mix = random.dirichlet(np.full(genres.max() + 1, config.alpha))
        chosen.append(drawn(random, training, genres, mix, config.sentences))
        chosen.append(drawn(random, judging, genres, mix, config.judging))
        training = np.setdiff1d(training, chosen[-2])
    chosen.append(
        np.random.default_rng(0).permutation(sentences(tuning))[: config.public]
    )
    whole: Any = KINDS["token"].whole(config.model, rows.classes, seed)
    found = seen(whole, rows, chosen, config)
    n_rows, length = config.clients * config.sentences, found[0]["labels"].shape[1]
    return Dealt(
        model=TokenTail(whole, LAYERS),
        train=found[0:-1:2],
        own=found[1:-1:2],
        public=found[-1],
        preparation=preparation_of(frozen_layers(whole, LAYERS), length, n_rows),
    )


def drawn(
    random: np.random.Generator,
    rows: np.ndarray,
    genres: np.ndarray,
    mix: np.ndarray,
    n: int,
) -> np.ndarray:
    """Rows without repetition, of genres in the shares of a mix while they last.

    Args:
      random: draws.
      rows: that are left, i64[R].
      genres: of all rows of the table.
      mix: share of each genre.
      n: how many.
    """
    mine = genres[rows]
    counts = np.bincount(mine, minlength=len(mix))
    chances = mix[mine] / counts[mine] + 1e-12  # enough of them, also of a narrow mix
    return random.choice(rows, n, replace=False, p=chances / chances.sum())


def seen(whole: Any, rows: Any, chosen: list[np.ndarray], config: Any) -> list[Arrays]:
    """What the last layer reads of each set of sentences, all of one length.

    Args:
      whole: the classifier.
      rows: of the task.
      chosen: rows of each set.
      config: of the study.
    """
    together = rows.table.select(np.concatenate(chosen))
    tokens = KINDS["token"].encode(together, config.model, config.max_length)
    columns = {
        "hidden": hidden_states(whole, tokens, LAYERS),
        "attention_mask": tokens["attention_mask"],
        "labels": tokens["labels"],
    }
    ends = np.cumsum([len(one) for one in chosen])[:-1]
    parts = {name: np.split(column, ends) for name, column in columns.items()}
    return [{name: parts[name][k] for name in parts} for k in range(len(chosen))]
