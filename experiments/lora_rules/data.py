"""Sentences of four domains, dealt to eight clients, as hidden states that the frozen layers gave once.

documents of a domain --+-- tuning (no run of the study sees them) --+-- two clients' training sentences
                        +-- study, dealt anew for every seed         +-- their own test sentences, other documents
"""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import datasets, models
from fedjax_fm.experiments.lora_rules.config import Config
from fedjax_fm.experiments.lora_rules.tail import hidden_states
from fedjax_fm.population.splits import split_by_group

TUNING_SEED = 1000


class Sentences(NamedTuple):
    """The pool."""

    arrays: dict[str, np.ndarray]  # hidden [n, T, d], attention_mask [n, T], label [n]
    domain: np.ndarray  # str[n]
    document: np.ndarray  # str[n]
    tuning: np.ndarray  # bool[n]


class Dealt(NamedTuple):
    """Clients, in the order of `Config.ranks`."""

    train: list[dict[str, np.ndarray]]
    test: list[dict[str, np.ndarray]]
    public: dict[str, np.ndarray]  # sentences for tuning, from which Fed-SB takes its directions


def load(config: Config, model: Any) -> Sentences:
    """Reads whole documents of every domain until it has `pool` sentences, and runs the frozen layers."""
    table = datasets.load_sentiment()
    random = np.random.default_rng(TUNING_SEED)
    chosen = []
    for name in np.unique(table["domain"]):
        inside = np.flatnonzero(table["domain"] == name)
        documents = random.permutation(np.unique(table["group"][inside]))
        rank = {document: place for place, document in enumerate(documents)}
        order = np.argsort([rank[document] for document in table["group"][inside]], kind="stable")
        chosen.append(inside[order[: config.pool]])
    rows = np.concatenate(chosen)
    tokens = models.tokenize(models.load_tokenizer(config.model), list(table["text"][rows]), config.max_length)
    document, domain = table["group"][rows], table["domain"][rows]
    shares = {"study": 1 - config.tuning_share, "tuning": config.tuning_share}
    tuning = np.isin(np.arange(len(rows)), split_by_group(document, shares, TUNING_SEED, domain)["tuning"])
    arrays = {
        "hidden": hidden_states(model, tokens, config.trained_layers),
        "attention_mask": tokens["attention_mask"],
        "label": table["label"][rows].astype(np.int32),
    }
    return Sentences(arrays, np.asarray(domain), np.asarray(document), tuning)


def deal(pool: Sentences, config: Config, seed: int) -> Dealt:
    """Two clients a domain; which of the ranks they have is drawn too."""
    random = np.random.default_rng(seed)
    rows = np.flatnonzero(pool.tuning == (seed == TUNING_SEED))
    fraction = config.train / (config.train + config.test)
    halves = split_by_group(pool.document[rows], {"train": fraction, "test": 1 - fraction}, seed, pool.domain[rows])
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for name in np.unique(pool.domain):
        for half, size in (("train", config.train), ("test", config.test)):
            mine = rows[halves[half]]
            mine = random.permutation(mine[pool.domain[mine] == name])
            if len(mine) < 2 * size:
                raise ValueError(f"{name}: {len(mine)} sentences to {half}, two clients want {size} each; raise `pool`")
            parts[half] += [mine[:size], mine[size : 2 * size]]
    order = random.permutation(len(config.ranks))
    take = lambda rows: {key: array[rows] for key, array in pool.arrays.items()}
    public = np.random.default_rng(TUNING_SEED).permutation(np.flatnonzero(pool.tuning))[: config.public]
    return Dealt([take(parts["train"][k]) for k in order], [take(parts["test"][k]) for k in order], take(public))
