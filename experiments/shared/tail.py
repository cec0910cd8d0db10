"""The last layers of an encoder with its classifier, and what the frozen layers before
them give.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from fedjax_fm import models
from fedjax_fm.experiments.shared.sentences import Arrays, deal, of_split, sentences
from fedjax_fm.models.classifier import mean_of_real
from fedjax_fm.models.stacked import run_stacked


def _layers(model: Any, part: slice) -> nnx.Module:
    """Some of the stacked layers."""
    graphdef, state = nnx.split(model.bert.encoder.layer)
    layers = nnx.merge(graphdef, jax.tree.map(lambda x: x[part], state))
    layers.stacked_layers = len(range(model.config.num_hidden_layers)[part])
    return layers


class Tail(nnx.Module):
    """`tail(hidden f32[B, T, d], attention_mask [B, T]) -> logits`.

    The last layers, the mean of tokens, the head.
    """

    def __init__(self, model: Any, n_layers: int):
        self.layer = _layers(model, slice(-n_layers, None))
        self.classifier = nnx.clone(model.classifier)

    def __call__(self, hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
        mask = attention_mask.astype(bool)[:, None, None, :]
        return self.classifier(
            mean_of_real(run_stacked(self.layer, hidden, mask), attention_mask)
        )


def hidden_states(
    model: Any, tokens: dict[str, np.ndarray], n_layers: int, batch_size: int = 64
) -> np.ndarray:
    """f32[n, T, d]: what the last `n_layers` layers see."""
    lower = nnx.clone(model.bert)
    lower.encoder.layer = _layers(model, slice(None, -n_layers))
    graphdef, state = nnx.split(lower)
    compute = jax.jit(lambda state, ids, mask: nnx.merge(graphdef, state)(ids, mask))
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    out = np.zeros((*ids.shape, model.config.hidden_size), np.float32)
    for start in range(0, len(ids), batch_size):
        rows = np.resize(
            np.arange(start, min(start + batch_size, len(ids))), batch_size
        )
        out[rows] = compute(state, ids[rows], mask[rows])
    return out


class Dealt(NamedTuple):
    """Clients of four domains.

    Their arrays hold what the last layer sees: hidden, attention_mask and label.
    """

    model: Tail  # with a head of random values, the same for all arms of a seed
    train: list[Arrays]
    test: list[Arrays]
    public: Arrays  # labelled tuning sentences


def deal_hidden(
    name: str,
    max_length: int,
    seed: int,
    split: str,
    *,
    per_domain: int,
    train: int,
    test: int,
    public: int,
) -> Dealt:
    """Deals a split's documents to clients, in an order that is drawn, and computes the
    frozen layers once.

    Args:
      name: of the model.
      max_length: tokens of a sentence.
      seed: names documents, clients, their order and the head.
      split: "tuning" or "final".
      per_domain: clients of a domain.
      train, test: sentences of a client, of different documents.
      public: sentences of the tuning documents.
    """
    found = sentences(name, max_length)
    clients = deal(
        found,
        of_split(found, split, 0.4),
        seed,
        train=train,
        test=test,
        per_domain=per_domain,
    )
    order = np.random.default_rng(seed).permutation(len(clients))
    whole = models.from_pretrained(name, num_labels=2, pooling="mean", seed=seed)

    def seen(rows: np.ndarray) -> Arrays:
        arrays = found.take(rows)
        hidden = hidden_states(whole, arrays, 1)
        return {
            "hidden": hidden,
            "attention_mask": arrays["attention_mask"],
            "label": arrays["label"],
        }

    some = np.random.default_rng(0).permutation(of_split(found, "tuning", 0.4))[:public]
    return Dealt(
        model=Tail(whole, 1),
        train=[seen(clients[k].train) for k in order],
        test=[seen(clients[k].test) for k in order],
        public=seen(some),
    )
