"""Offsite-tuning: which layers an emulator has, and what the plugged model computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft, tasks

IDS = np.random.default_rng(0).integers(1, 20, (2, 5))


def llama(layers=7):
    config = models.LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return models.LlamaForCausalLM(config, nnx.Rngs(0))


def layers_of(model):
    """The parameters of every layer, one tree each, whatever the cuts."""
    (stack,) = [owner.layers for _, owner in nnx.iter_modules(model) if hasattr(owner, "layers")]  # fmt: skip
    parts = stack.parts if hasattr(stack, "parts") else [stack]
    found = []
    for part in parts:
        state = nnx.to_pure_dict(nnx.state(part, nnx.Param))
        n = jax.tree.leaves(state)[0].shape[0]
        found += [jax.tree.map(lambda x, i=i: np.asarray(x[i]), state) for i in range(n)]  # fmt: skip
    return found


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.parametrize(
    ("how", "layers"),
    [
        ({"dropped": 0.0, "first": 1, "last": 1}, (0, 1, 2, 3, 4, 5, 6)),
        ({"dropped": 0.5, "first": 1, "last": 1}, (0, 1, 5, 6)),
        ({"dropped": 0.4, "first": 1, "last": 1}, (0, 1, 3, 5, 6)),
        ({"dropped": 0.25, "first": 1, "last": 2}, (0, 1, 3, 4, 5, 6)),
        ({"dropped": 0.25, "first": 2, "last": 1, "rounding": "down"}, (0, 1, 2, 3, 5, 6)),
        ({"dropped": 0.75, "first": 2, "last": 2}, (0, 1, 2, 5, 6)),
    ],
)  # fmt: skip
def test_which_layers_stay(how, layers):
    """round(M (1 - r)) middle ones at i (M - 1) / (m - 1), rounded either way."""
    model = llama()
    small = peft.emulated(model, **how)
    assert small.layers == layers
    every, found = layers_of(model), layers_of(small.model)
    assert len(found) == len(layers)
    assert all(same(every[i], own) for i, own in zip(layers, found, strict=True))


def test_without_a_dropped_layer_it_is_the_model():
    model = llama(layers=4)
    small = peft.emulated(model, first=1, last=1, dropped=0.0)
    np.testing.assert_allclose(small.model(IDS), model(IDS), rtol=1e-5, atol=1e-6)


def test_trained_ends_are_plugged_into_the_model():
    """Only the ends are trained, and the whole model gets them around its own middle."""
    model = llama(layers=6)
    every = layers_of(model)
    small = peft.emulated(model, first=2, last=1, dropped=0.34)
    assert small.layers == (0, 1, 2, 4, 5)
    adapted = peft.apply(small.model, peft.tuned_ends(small))
    trained = jax.tree.map(lambda x: x + 1, adapted.delta)
    n_end = sum(x.size for x in jax.tree.leaves(every[0]))
    head = sum(x.size for x in jax.tree.leaves(adapted.delta)) - 3 * n_end
    assert head == 0  # of a language model, nothing outside of the layers
    whole = peft.plugged(model, small, adapted.model(trained))
    found = layers_of(whole)
    assert len(found) == 6
    for i, own in enumerate(found):
        moved = jax.tree.map(lambda x: x + 1, every[i]) if i in (0, 1, 5) else every[i]
        assert same(own, moved), i
    assert whole(IDS).shape == model(IDS).shape
    untouched = peft.plugged(model, small, small.model)
    np.testing.assert_allclose(untouched(IDS), model(IDS), rtol=1e-5, atol=1e-6)


def test_the_owner_scores_the_whole_model():
    """The task of the plugged model is that of `plugged`, and holds no weights itself."""
    model = llama(layers=6)
    small = peft.emulated(model, first=1, last=1, dropped=0.5)
    method = peft.on_layers(peft.lora(2, targets=["q_proj"]), small.ends())
    adapted = peft.apply(small.model, method)
    trained = jax.tree.map(lambda x: x + 0.5, adapted.delta)
    owner = peft.plug_in(model, small, adapted)
    rows = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "labels": IDS}
    task = tasks.language_modeling(owner)
    found, _ = task.loss(trained, owner.backbone, rows, None)
    whole = peft.plugged(model, small, adapted.model(trained))
    logs = jax.nn.log_softmax(whole(IDS)[:, :-1])
    expected = -np.take_along_axis(np.asarray(logs), IDS[:, 1:, None], axis=2)
    np.testing.assert_allclose(found, expected.mean(axis=(1, 2)), rtol=1e-4)
    emulated, _ = tasks.language_modeling(adapted).loss(
        trained, adapted.backbone, rows, None
    )
    assert np.abs(found - emulated).max() > 1e-4  # clients see another loss

    def loss(delta, backbone):
        return task.loss(delta, backbone, rows, None)[0]

    program = jax.make_jaxpr(loss)(trained, owner.backbone)
    assert sum(np.size(x) for x in program.consts) < 200  # of 3,000 and more


def test_other_methods_in_the_ends():
    small = peft.emulated(llama(layers=4), first=1, last=1, dropped=0.5)
    assert small.ends() == [0, -1]
    method = peft.on_layers(peft.lora(2, targets=["q_proj"]), small.ends())
    adapted = peft.apply(small.model, method)
    shapes = sorted(x.shape for x in jax.tree.leaves(adapted.delta))
    assert shapes == [(1, 2, 8), (1, 2, 8), (1, 8, 2), (1, 8, 2)]
    assert jnp.isfinite(adapted.model()(IDS)).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"first": 0}, "first=0"),
        ({"dropped": 1.0}, "dropped=1.0"),
        ({"first": 2, "last": 2}, "leave 0 in the middle, of which dropped=0.2 keeps 0"),
        ({"rounding": "up"}, "rounding='up'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        peft.emulated(llama(layers=4), **how)


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"one stack of layers, Linear has none"):
        peft.emulated(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    small = peft.emulated(llama(layers=5), first=1, last=1)
    with pytest.raises(ValueError, match="not those of a model of 4"):
        peft.plugged(llama(layers=4), small, small.model)
    adapted = peft.apply(small.model, peft.tuned_ends(small))
    with pytest.raises(ValueError, match="not those of a model of 4"):
        peft.plug_in(llama(layers=4), small, adapted)
    with pytest.raises(ValueError, match="cut into runs of layers already"):
        peft.emulated(small.model, first=1, last=1)
