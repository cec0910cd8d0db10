"""The last layers of an encoder with its classifier, and what the frozen layers before them give."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from fedjax_fm.models.classifier import mean_of_real
from fedjax_fm.models.stacked import run_stacked


def _layers(model: Any, part: slice) -> nnx.Module:
    """Some of the stacked layers."""
    graphdef, state = nnx.split(model.bert.encoder.layer)
    layers = nnx.merge(graphdef, jax.tree.map(lambda x: x[part], state))
    layers.stacked_layers = len(range(model.config.num_hidden_layers)[part])
    return layers


class Tail(nnx.Module):
    """`tail(hidden f32[B, T, d], attention_mask [B, T]) -> logits`: the last layers, the mean of tokens, the head."""

    def __init__(self, model: Any, n_layers: int):
        self.layer = _layers(model, slice(-n_layers, None))
        self.classifier = nnx.clone(model.classifier)

    def __call__(self, hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
        mask = attention_mask.astype(bool)[:, None, None, :]
        return self.classifier(mean_of_real(run_stacked(self.layer, hidden, mask), attention_mask))


def hidden_states(model: Any, tokens: dict[str, np.ndarray], n_layers: int, batch_size: int = 64) -> np.ndarray:
    """f32[n, T, d]: what the last `n_layers` layers see."""
    lower = nnx.clone(model.bert)
    lower.encoder.layer = _layers(model, slice(None, -n_layers))
    graphdef, state = nnx.split(lower)
    compute = jax.jit(lambda state, ids, mask: nnx.merge(graphdef, state)(ids, mask))
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    out = np.zeros((*ids.shape, model.config.hidden_size), np.float32)
    for start in range(0, len(ids), batch_size):
        rows = np.resize(np.arange(start, min(start + batch_size, len(ids))), batch_size)
        out[rows] = compute(state, ids[rows], mask[rows])
    return out
