"""DINOv2 beside torch: positions of other sizes, scaled branches, sizes that are
published. Hidden states, logits and gradients beside transformers are in test_families.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models as reference
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.models.architectures import architecture
from fedjax_fm.models.dinov2 import LayerScale, bicubic

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FIELDS = {"model_type": "dinov2", **reference.DINOV2}


def random_model(fields=FIELDS, num_labels=None):
    """With numpy's numbers: drawing by jax.random compiles for every shape."""

    def make():
        return models.from_config(fields, num_labels=num_labels)

    graphdef, state = nnx.split(nnx.eval_shape(make))
    random = np.random.default_rng(0)
    flat = [
        (path, v.replace(jnp.asarray(0.3 * random.normal(size=v.shape), v.dtype)))
        for path, v in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


@pytest.mark.parametrize(
    ("old", "new"), [(37, 16), (37, 8), (3, 7), (3, 2), (5, 1), (1, 4), (6, 6)]
)
def test_positions_are_interpolated_as_torch_does(old: int, new: int):
    grid = np.random.default_rng(0).normal(size=(1, 3, old, old)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(grid), size=(new, 2 * new), mode="bicubic", align_corners=False
    )
    found = bicubic(old, new) @ grid @ bicubic(old, 2 * new).T
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_the_table_s_own_size_and_any_other_equal_transformers():
    theirs, folder = reference.folder_of("dinov2-other-size")
    ours = models.from_pretrained(folder)
    random = np.random.default_rng(5)
    for height, width in ((20, 20), (24, 8)):
        pixels = random.normal(size=(1, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            expected = theirs.dinov2(torch.tensor(pixels)).last_hidden_state.numpy()
        found = reference.quick_jit(ours)(pixels)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_at_the_size_of_the_table_positions_are_the_table():
    model = random_model()
    embeddings = model.embeddings
    found = embeddings._positions((12, 12))
    np.testing.assert_array_equal(found, embeddings.position_embeddings[...])


def test_branches_of_scale_zero_leave_the_input():
    model = random_model()
    layer = model.encoder.layer
    for scale in (layer.layer_scale1, layer.layer_scale2):
        scale.lambda1[...] = jnp.zeros_like(scale.lambda1[...])
    hidden = np.random.default_rng(1).normal(size=(2, 5, 16)).astype(np.float32)
    np.testing.assert_array_equal(model.encoder(hidden), hidden)


def test_scales_start_at_the_configuration_s_value():
    sizes = {"hidden_size": 16, "num_attention_heads": 2}
    config = models.Dinov2Config(**sizes, layerscale_value=0.25)
    scale = LayerScale(config, jnp.float32)
    np.testing.assert_array_equal(scale.lambda1[...], np.full(16, 0.25, np.float32))


def test_channels_may_be_last_and_parts_of_patches_are_refused():
    model, pixels = random_model(), reference.wide_pixels()["pixel_values"]
    forward = reference.quick_jit(model)
    np.testing.assert_array_equal(forward(pixels), forward(np.moveaxis(pixels, 1, -1)))
    message = r"H and W multiples of patch_size=4, got \[2, 3, 12, 27\]"
    with pytest.raises(ValueError, match=message):
        model(pixels[..., :27])
    with pytest.raises(ValueError, match=r"expected pixels of shape \[B, 3, H, W\]"):
        model(pixels[:, :2])
    with pytest.raises(ValueError, match=r"expected pixels of shape \[B, 3, H, W\]"):
        model(pixels[0])


def published(name: str) -> int:
    """transformers' count of a configuration, less the mask token of pretraining."""
    fields = {key: v for key, v in architecture(name).items() if key != "model_type"}
    with torch.device("meta"):
        model = transformers.Dinov2Model(transformers.Dinov2Config(**fields))
    total = sum(parameter.numel() for parameter in model.parameters())
    return total - model.embeddings.mask_token.numel()


@pytest.mark.parametrize("name", ["dinov2-small", "dinov2-base", "dinov2-large"])
def test_the_published_sizes(name: str):
    shapes = nnx.eval_shape(lambda: models.from_config(architecture(name)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes)))
    assert count == published(name)
    if name == "dinov2-small":
        assert count == 22_056_192


def test_a_checkpoint_with_swiglu_is_refused(tmp_path):
    fields = {**FIELDS, "use_swiglu_ffn": True}
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="use_swiglu_ffn=True is not supported"):
        models.from_pretrained(tmp_path)


@pytest.mark.parametrize("method", ["lora", "vpt", "houlsby", "bitfit", "ia3"])
def test_methods_start_at_the_model_and_get_gradients_in_every_layer(method: str):
    whole = random_model(num_labels=3)
    made = {
        "lora": lambda: peft.lora(2, 4.0, targets="query|value"),
        "vpt": lambda: peft.vpt(2),
        "houlsby": lambda: peft.houlsby(2),
        "bitfit": peft.bitfit,
        "ia3": lambda: peft.ia3(targets="key|value", feedforward="fc2"),
    }[method]()
    adapted = peft.apply(whole, made, jax.random.key(0))
    pixels = reference.wide_pixels()["pixel_values"]

    def loss(delta):
        model = adapted.model(delta, adapted.backbone)
        return jnp.square(model(pixels)).sum()

    gradient = reference.quick_jit(jax.grad(loss))(adapted.delta)
    for path, variable in nnx.to_flat_state(gradient):
        found = np.asarray(variable[...])
        if "layer" in path and "lora_a" not in map(str, path):
            assert (np.abs(found).reshape(len(found), -1).max(axis=1) > 0).all(), path
