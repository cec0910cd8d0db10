"""The last layer of a model by itself computes what the whole model does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_decoders import LLAMA
from tiny_encoder import BERT

from fedjax_fm import models, peft
from fedjax_fm.experiments.shared.tail import (
    frozen_layers,
    hidden_states,
    last_layers,
)
from fedjax_fm.experiments.shared.token_tail import (
    DecoderTail,
    EncoderTail,
    decoder_states,
)

FIELDS = {**BERT, "hidden_size": 8, "intermediate_size": 12}
ENCODER = models.from_config(FIELDS, num_labels=5, pooling="none", seed=0)
VOCABULARY = np.array([3, 7, 8, 30, 49], np.int32)


def tokens(vocabulary, length=6):
    rng = np.random.default_rng(0)
    mask = np.ones((4, length), np.int32)
    mask[1, 4:], mask[2, 2:] = 0, 0
    ids = rng.integers(1, vocabulary, (4, length)).astype(np.int32) * mask
    return {"input_ids": ids, "attention_mask": mask}


def test_of_an_encoder():
    rows = tokens(50)
    hidden = hidden_states(ENCODER, rows, 1, batch_size=3)
    found = EncoderTail(ENCODER)(jnp.asarray(hidden), rows["attention_mask"])
    whole = ENCODER(rows["input_ids"], rows["attention_mask"])
    real = rows["attention_mask"] == 1
    np.testing.assert_allclose(found[real], whole[real], atol=1e-5)


def test_of_a_decoder_among_some_tokens():
    rows = tokens(50)
    hidden = decoder_states(LLAMA, rows, batch_size=3)
    tail = DecoderTail(LLAMA, VOCABULARY)
    found = tail(jnp.asarray(hidden), rows["attention_mask"])
    whole = LLAMA(rows["input_ids"], rows["attention_mask"])[..., VOCABULARY]
    real = rows["attention_mask"] == 1
    np.testing.assert_allclose(found[real], whole[real], atol=2e-5)


def test_the_model_that_is_cut_stays_whole():
    before = jax.tree.map(np.asarray, nnx.state(LLAMA))
    decoder_states(LLAMA, tokens(50))
    DecoderTail(LLAMA, VOCABULARY)
    after = jax.tree.map(np.asarray, nnx.state(LLAMA))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )
    assert LLAMA.model.layers.stacked_layers == 2


@pytest.mark.parametrize("tail", [EncoderTail(ENCODER), DecoderTail(LLAMA, VOCABULARY)])
def test_what_bitfit_and_prefixes_train(tail):
    width = tail.classifier.in_features
    kernels = [
        module
        for path, module in nnx.iter_modules(tail)
        if isinstance(module, nnx.Linear) and "classifier" not in path
    ]
    delta = peft.apply(tail, peft.bitfit(modules_to_save=())).delta
    names = {path[-1] for path, _ in nnx.to_flat_state(delta)}
    sizes = sum(leaf.size for leaf in jax.tree.leaves(delta))
    more = 0
    if isinstance(tail, EncoderTail):  # its norms and its head have biases
        more = 2 * width + tail.classifier.out_features
    assert names == {"bias"}
    assert sizes == sum(module.out_features for module in kernels) + more
    adapted = peft.apply(tail, peft.prefix_tuning(3, modules_to_save=()))
    shapes = {leaf.shape for leaf in jax.tree.leaves(adapted.delta)}
    assert len(shapes) == 1
    assert shapes.pop()[0] == 3
    hidden = jnp.ones((2, 4, width))
    assert adapted.model()(hidden, jnp.ones((2, 4))).shape == (2, 4, 5)


def test_a_prefix_of_a_tail_is_that_of_the_whole_models_last_layer():
    """Keys and values before those of the text, whose positions begin behind them."""
    rows = tokens(50)
    method = peft.prefix_tuning(3, modules_to_save=())
    whole = peft.apply(LLAMA, method, jax.random.key(1))
    model = whole.model()
    hidden = decoder_states(model, rows)
    tail = peft.apply(DecoderTail(LLAMA, VOCABULARY), method)
    last = [leaf[-1] for leaf in jax.tree.leaves(whole.delta)]
    delta = jax.tree.unflatten(jax.tree.structure(tail.delta), last)
    found = tail.model(delta)(jnp.asarray(hidden), rows["attention_mask"])
    real = rows["attention_mask"] == 1
    expected = model(rows["input_ids"], rows["attention_mask"])[..., VOCABULARY]
    np.testing.assert_allclose(found[real], expected[real], atol=2e-5)


@pytest.mark.parametrize("n_layers", [0, 3])
def test_layers_that_a_model_does_not_have_are_refused(n_layers):
    """Cut by a slice, three of two layers would be two, in silence."""
    fields = {**BERT, "num_hidden_layers": 2}
    whole = models.from_config(fields, num_labels=3, pooling="none", seed=0)
    for cut in (last_layers, frozen_layers):
        with pytest.raises(ValueError, match=f"n_layers <= 2, got n_layers={n_layers}"):
            cut(whole, n_layers)
