"""Every architecture: bfloat16, programs that do not grow with depth, padding, and what
is refused.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models as reference
from flax import nnx

from fedjax_fm import models
from fedjax_fm.models.families import naming_of
from fedjax_fm.models.weights import read_config

pytest.importorskip("torch")
pytest.importorskip("transformers")


@functools.cache
def loaded(name: str, dtype: str = "float32") -> nnx.Module:
    num_labels = reference.CASES[name].num_labels
    return models.from_pretrained(
        reference.folder_of(name)[1], num_labels=num_labels, dtype=dtype
    )


def fields_of(name: str) -> dict:
    return read_config(reference.folder_of(name)[1])


@pytest.mark.parametrize(
    "name", ["roberta", "albert", "vit", "dinov2", "clip", "gpt2", "t5-v1.1", "qwen2"]
)
def test_bfloat16_from_the_file_to_the_logits(name: str):
    case, half = reference.CASES[name], loaded(name, "bfloat16")
    inputs = case.inputs()
    for path, variable in nnx.to_flat_state(nnx.state(half)):
        head = case.num_labels is not None and str(path[0]) == "classifier"
        assert variable.dtype == (jnp.float32 if head else jnp.bfloat16), path
    if case.hidden is not None:
        inner = half.hidden if hasattr(half, "hidden") else getattr(half, case.hidden)
        assert jax.eval_shape(lambda: inner(**inputs)).dtype == jnp.bfloat16
    if name in ("roberta", "t5-v1.1"):

        def forward(model):
            return np.asarray(
                reference.quick_jit(lambda: reference.logits_of(model(**inputs)))()
            )

        found, expected = forward(half), forward(loaded(name))
        assert found.dtype == np.float32
        assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    else:
        assert (
            jax.eval_shape(lambda: reference.logits_of(half(**inputs))).dtype
            == jnp.float32
        )


@pytest.mark.parametrize(
    "name",
    [
        "roberta",
        "distilbert",
        "albert",
        "vit",
        "dinov2-other-size",
        "clip-classifier",
        "gpt2",
        "t5",
    ],
)
def test_depth_does_not_grow_the_program(name: str):
    case, inputs, fields = (
        reference.CASES[name],
        reference.CASES[name].inputs(),
        fields_of(name),
    )

    def lines(depth: int) -> int:
        deeper = _with_depth(fields, depth)
        model = nnx.eval_shape(
            lambda: models.from_config(deeper, num_labels=case.num_labels)
        )
        graphdef, state = nnx.split(model)
        lowered = jax.jit(
            lambda s, i: reference.logits_of(nnx.merge(graphdef, s)(**i))
        ).lower(state, inputs)
        return len(lowered.as_text().splitlines())

    assert lines(2) == lines(7)


def _with_depth(fields: dict, depth: int) -> dict:
    names = (
        "num_hidden_layers",
        "n_layers",
        "n_layer",
        "num_layers",
        "num_decoder_layers",
    )
    changed = {name: depth for name in names if name in fields}
    if "vision_config" in fields:
        changed["vision_config"] = _with_depth(fields["vision_config"], depth)
    return fields | changed


def test_images_may_have_their_channels_last():
    model, inputs = loaded("vit"), reference.CASES["vit"].inputs()
    forward = reference.quick_jit(model)
    first = forward(**inputs)
    np.testing.assert_array_equal(
        first, forward(np.moveaxis(inputs["pixel_values"], 1, -1))
    )
    with pytest.raises(
        ValueError, match=r"expected pixels of shape .*, got \[2, 3, 12, 8\]"
    ):
        model(inputs["pixel_values"][..., :8])


def test_padding_rows_and_short_texts_change_nothing():
    for name in ("roberta", "gpt2"):
        model, inputs = loaded(name), reference.CASES["roberta"].inputs()
        inner = reference.quick_jit(
            lambda i, m, model=model, name=name: getattr(
                model, reference.CASES[name].hidden
            )(i, m)
        )
        whole = inner(inputs["input_ids"], inputs["attention_mask"])
        alone = inner(inputs["input_ids"][2:, :2], inputs["attention_mask"][2:, :2])
        np.testing.assert_allclose(whole[2:, :2], alone, atol=2e-5)
        assert np.isfinite(
            inner(inputs["input_ids"], np.zeros((3, 11), np.int32))
        ).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "roberta",
            {"position_embedding_type": "relative_key"},
            "absolute position embeddings, got 'relative_key'",
        ),
        ("albert", {"num_hidden_groups": 2}, "num_hidden_groups=2"),
        ("distilbert", {"activation": "swish7"}, "activation must be one of"),
        ("vit", {"patch_size": 5}, "image_size=12 is not a multiple of patch_size=5"),
        ("vit", {"qkv_bias": False}, "qkv_bias=False is not supported"),
        (
            "dinov2",
            {"patch_size": 5},
            "image_size=12 is not a multiple of patch_size=5",
        ),
        ("dinov2", {"num_attention_heads": 3}, "hidden_size=16 is not a multiple of"),
        ("dinov2", {"qkv_bias": False}, "qkv_bias=False is not supported"),
        ("dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn=True is not supported"),
        ("gpt2", {"n_head": 3}, "n_embd=16 is not a multiple of n_head=3"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx=True",
        ),
        (
            "t5",
            {"feed_forward_proj": "gated-swish7"},
            "feed_forward_proj must be one of",
        ),
        (
            "clip",
            {"text_config": {"hidden_size": 15}},
            "hidden_size=15 is not a multiple",
        ),
    ],
)
def test_configurations_that_cannot_be_computed(name: str, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        models.from_config(fields_of(name) | change)


def test_arguments_that_an_architecture_does_not_take():
    with pytest.raises(ValueError, match="needs decoder_input_ids"):
        loaded("t5")(np.ones((1, 3), np.int32))
    with pytest.raises(ValueError, match="23 tokens exceed the model's 22 positions"):
        loaded("roberta")(np.ones((1, 23), np.int32))
    with pytest.raises(ValueError, match="33 tokens exceed the model's context of 32"):
        loaded("gpt2")(np.ones((1, 33), np.int32))
    with pytest.raises(ValueError, match="has no counterpart at Hugging Face"):
        naming_of(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
