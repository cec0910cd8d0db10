"""Words of the Brown corpus with their parts of speech, dealt to clients by document.

documents --+-- a fixed quarter, for tuning (no seed of a study sees it)
            +-- the others, dealt anew for every seed --+-- clients' sentences
                                                        +-- (test: other documents)
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from fedjax_fm import systems
from fedjax_fm.experiments.gate.tasks import KINDS, MINILM, read, shuffled
from fedjax_fm.experiments.gate.training import fixed_quarter
from fedjax_fm.experiments.shared.tail import (
    frozen_layers,
    hidden_states,
    last_layers,
    preparation_of,
)
from fedjax_fm.models.stacked import run_stacked
from fedjax_fm.population import Population

Arrays = dict[str, np.ndarray]
TASK = "brown-tags"  # it passed the gate: tuning brings 15 points


class TokenTail(nnx.Module):
    """The last layers and the head on every token.

    `tail(hidden f32[B, T, d], attention_mask [B, T]) -> logits f32[B, T, K]`.

    Args:
      model: a BERT with a label for each token.
      n_layers: how many of its last layers.
    """

    def __init__(self, model: Any, n_layers: int):
        self.layer = last_layers(model, n_layers)
        self.classifier = nnx.clone(model.classifier)

    def __call__(self, hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Logits f32[B, T, K]."""
        mask = attention_mask.astype(bool)[:, None, None, :]
        return self.classifier(run_stacked(self.layer, hidden, mask))


class Words(NamedTuple):
    """Sentences as the last layers read them.

    Arrays hold `hidden`, `attention_mask` and `labels`.
    """

    model: TokenTail  # with a head of random values, the same for all arms of a seed
    clients: list[Arrays]
    test: Arrays
    preparation: systems.Preparation  # of the clients' sentences


def deal(
    seed: int,
    split: str,
    *,
    clients: int,
    sentences: int,
    test: int,
    max_length: int,
    n_layers: int,
    model: str = MINILM,
) -> Words:
    """Deals a split's documents, and computes the layers that are frozen once.

    Args:
      seed: of documents, clients and the head.
      split: "tuning" or "final".
      clients: each with documents of its own.
      sentences: of a client.
      test: sentences that are scored.
      max_length: tokens of a sentence.
      n_layers: last layers that are trained.
      model: a BERT.
    """
    rows = read(TASK)
    tuning, own = fixed_quarter(np.unique(rows.table["document"][rows.train]))
    documents, judged = own, rows.test
    if split == "tuning":
        documents, judged = tuning, rows.validation
    random = np.random.default_rng(seed)
    parts = np.array_split(random.permutation(documents), clients)
    whole: Any = KINDS["token"].whole(model, rows.classes, seed)

    def seen(chosen: np.ndarray) -> Arrays:
        arrays = KINDS["token"].encode(rows.table.select(chosen), model, max_length)
        return {
            "hidden": hidden_states(whole, arrays, n_layers),
            "attention_mask": arrays["attention_mask"],
            "labels": arrays["labels"],
        }

    def of(part: np.ndarray) -> np.ndarray:
        mine = rows.train[np.isin(rows.table["document"][rows.train], part)]
        return random.permutation(mine)[:sentences]

    shown = np.random.default_rng(0).permutation(judged)[:test]
    seen_by = [seen(of(part)) for part in parts]
    rows_seen = sum(len(one["labels"]) for one in seen_by)
    frozen, length = frozen_layers(whole, n_layers), seen_by[0]["labels"].shape[1]
    return Words(
        model=TokenTail(whole, n_layers),
        clients=seen_by,
        test=seen(shown),
        preparation=preparation_of(frozen, length, rows_seen),
    )


def with_shuffled_labels(clients: list[Arrays], seed: int) -> list[Arrays]:
    """Clients whose labels are permuted among the words of all of them.

    Args:
      clients: arrays of each.
      seed: of the permutation.
    """
    packed = Population.from_clients(clients)
    labels = shuffled(np.asarray(packed.arrays["labels"]), seed)
    arrays = {**packed.arrays, "labels": labels}
    packed = Population.from_arrays(arrays, packed.offsets)
    return [packed.client(k) for k in range(packed.n_clients)]
