"""The last layers of an encoder, on hidden states that are computed once.

The layers before them are frozen, so that training reads their output alone.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fedjax_fm import checks, systems, trees
from fedjax_fm.experiments.shared.sentences import Arrays
from fedjax_fm.models.classifier import mean_of_real
from fedjax_fm.models.stacked import run_stacked
from fedjax_fm.peft.lora_sb import first_gradients, first_updates
from fedjax_fm.study.judged import joined


def checked_layers(model: Any, n_layers: int) -> int:
    """How many of the last layers are meant, if the model has more or as many.

    Args:
      model: a classifier with a BERT encoder.
      n_layers: how many.
    """
    return checks.whole(
        "n_layers", n_layers, least=1, most=model.config.num_hidden_layers
    )


def _layers(model: Any, part: slice) -> nnx.Module:
    """Some of the stacked layers."""
    graphdef, state = nnx.split(model.bert.encoder.layer)
    some = jax.tree.map(lambda x: x[part], state)
    layers = nnx.merge(graphdef, some)
    numbers = range(model.config.num_hidden_layers)
    layers.stacked_layers = len(numbers[part])
    return layers


def last_layers(model: Any, n_layers: int) -> nnx.Module:
    """The last stacked layers of an encoder, as a module of their own.

    Args:
      model: a classifier with a BERT encoder.
      n_layers: how many.
    """
    return _layers(model, slice(-checked_layers(model, n_layers), None))


class Tail(nnx.Module):
    """The last layers, the mean over tokens, and the head.

    `tail(hidden f32[B, T, d], attention_mask [B, T]) -> logits`.

    Args:
      model: a classifier with a BERT encoder.
      n_layers: how many of its last layers.
    """

    def __init__(self, model: Any, n_layers: int):
        self.layer = last_layers(model, n_layers)
        self.classifier = nnx.clone(model.classifier)

    def __call__(self, hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Logits f32[B, classes]."""
        mask = attention_mask.astype(bool)[:, None, None, :]
        states = run_stacked(self.layer, hidden, mask)
        return self.classifier(mean_of_real(states, attention_mask))


def hidden_states(
    model: Any, tokens: dict[str, np.ndarray], n_layers: int, batch_size: int = 64
) -> np.ndarray:
    """What the last layers of a model read.

    Args:
      model: a classifier with a BERT encoder.
      tokens: {"input_ids", "attention_mask"}: [n, T].
      n_layers: how many last layers read it.
      batch_size: rows that are computed at once.

    Returns:
      f32[n, T, d].
    """
    lower = frozen_layers(model, n_layers)
    return outputs(lower, tokens, model.config.hidden_size, batch_size)


def frozen_layers(model: Any, n_layers: int) -> nnx.Module:
    """The embeddings and all layers but the last ones.

    Args:
      model: a classifier with a BERT encoder.
      n_layers: how many last layers are left out.
    """
    lower = nnx.clone(model.bert)
    below = slice(None, -checked_layers(model, n_layers))
    lower.encoder.layer = _layers(model, below)
    return lower


def preparation_of(
    frozen: nnx.Module,
    length: int,
    rows: int,
    batch_size: int = 64,
    method: str = "__call__",
) -> systems.Preparation:
    """What clients do who pass their rows through frozen layers once.

    Args:
      frozen: called with ids and mask.
      length: T, tokens of a row, padding included.
      rows: that clients train on, all of them together.
      batch_size: rows that are computed at once.
      method: of the module that is called.
    """
    graphdef, state = nnx.split(frozen)
    column = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)

    def forward(state: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return getattr(nnx.merge(graphdef, state), method)(ids, mask)

    return systems.prepared(
        forward,
        state,
        column,
        column,
        rows=rows,
        batch_size=batch_size,
        model_bytes=trees.nbytes(state),
    )


def outputs(
    model: nnx.Module, tokens: dict[str, np.ndarray], width: int, batch_size: int
) -> np.ndarray:
    """What a frozen model makes of tokens.

    Args:
      model: called with ids and mask.
      tokens: {"input_ids", "attention_mask"}: [n, T].
      width: d of what it gives.
      batch_size: rows that are computed at once.

    Returns:
      f32[n, T, d].
    """
    graphdef, state = nnx.split(model)

    @jax.jit
    def compute(state: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(ids, mask)

    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    out = np.zeros((*ids.shape, width), np.float32)
    for rows in batches(len(ids), batch_size):
        out[rows] = compute(state, ids[rows], mask[rows])
    return out


def batches(n: int, batch_size: int) -> Iterator[np.ndarray]:
    """Row numbers of each batch; the last one is filled up by repeating its rows.

    Args:
      n: rows.
      batch_size: of every batch.
    """
    for start in range(0, n, batch_size):
        rows = np.arange(start, min(start + batch_size, n))
        yield np.resize(rows, batch_size)


def for_the_tail(model: Any, arrays: Arrays) -> Arrays:
    """What the last layer of a model reads of some sentences.

    Args:
      model: a classifier with a BERT encoder.
      arrays: tokens and labels.

    Returns:
      {"hidden": f32[n, T, d], "attention_mask": [n, T], "label": i32[n]}.
    """
    kept = {name: arrays[name] for name in ("attention_mask", "label")}
    return {"hidden": hidden_states(model, arrays, 1), **kept}


def of_each(model: Any, parts: list[Arrays]) -> list[Arrays]:
    """`for_the_tail` of several sets of sentences, computed together.

    Args:
      model: a classifier with a BERT encoder.
      parts: tokens and labels of each set.
    """
    whole = for_the_tail(model, joined(parts))
    ends = np.cumsum([len(part["label"]) for part in parts])[:-1]
    columns = {name: np.split(array, ends) for name, array in whole.items()}
    return [{name: columns[name][k] for name in columns} for k in range(len(parts))]


def first_step(
    tail: Any, rows: Arrays, targets: str, rate: float = 1e-3, labels: str = "label"
) -> Any:
    """A first full step on some sentences, which gives Fed-SB its directions.

    Args:
      tail: before training.
      rows: `hidden`, `attention_mask` and labels, of sentences or of their words.
      targets: whose kernels.
      rate: of the step.
      labels: the column; negative ones do not count.

    Returns:
      {dotted module path: step}, as `lora_sb` takes it.
    """
    counts = rows[labels] >= 0
    wanted = np.where(counts, rows[labels], 0)

    def loss(model: Any) -> jax.Array:
        scores = model(rows["hidden"], rows["attention_mask"])
        nats = optax.softmax_cross_entropy_with_integer_labels(scores, wanted)
        return (nats * counts).sum() / counts.sum()

    gradients = first_gradients(tail, loss, targets=targets)
    return first_updates(gradients, rate)
