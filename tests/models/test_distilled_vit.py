"""The distillation token of a ViT, against transformers' DeiT."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft, tasks

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 12,
    "patch_size": 4,
}
PIXELS = np.random.default_rng(0).normal(size=(3, 3, 12, 12)).astype("f4")


def small():
    return models.ViTForImageClassification(models.ViTConfig(**SIZES), 3, nnx.Rngs(0))


def test_both_heads_are_transformers(tmp_path):
    """Its weights, split into those of a ViT and the three that are new."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.numpy import load_file, save_file

    torch.manual_seed(0)
    config = transformers.DeiTConfig(**SIZES, num_labels=3)
    deit = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    deit.save_pretrained(tmp_path / "deit")
    stored = load_file(tmp_path / "deit" / "model.safetensors")
    tensors = {name.replace("deit.", "vit."): x for name, x in stored.items()}
    token = tensors.pop("vit.embeddings.distillation_token")
    positions = tensors["vit.embeddings.position_embeddings"]
    tensors["vit.embeddings.position_embeddings"] = np.delete(positions, 1, axis=1)
    head = {x: tensors.pop(f"distillation_classifier.{x}") for x in ("weight", "bias")}
    for x in ("weight", "bias"):
        tensors[f"classifier.{x}"] = tensors.pop(f"cls_classifier.{x}")
    folder = tmp_path / "vit"
    folder.mkdir()
    save_file({k: np.ascontiguousarray(x) for k, x in tensors.items()}, folder / "model.safetensors")  # fmt: skip
    fields = {"model_type": "vit", "architectures": ["ViTForImageClassification"], **SIZES}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))

    ours = models.DistilledViT(
        models.from_pretrained(folder, num_labels=3), nnx.Rngs(0)
    )
    ours.distillation_token = nnx.Param(jnp.asarray(token))
    ours.distillation_position = nnx.Param(jnp.asarray(positions[:, 1:2]))
    ours.distillation_classifier.kernel = nnx.Param(jnp.asarray(head["weight"].T))
    ours.distillation_classifier.bias = nnx.Param(jnp.asarray(head["bias"]))
    with torch.no_grad():
        expected = deit(torch.tensor(PIXELS))
    of_class, of_teacher = ours(PIXELS)
    np.testing.assert_allclose(of_class, expected.cls_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_teacher, expected.distillation_logits, rtol=1e-4, atol=1e-5)  # fmt: skip


def test_it_is_trained_by_its_task_and_leaves_the_vit_alone():
    vit = small()
    before = jax.tree.map(np.asarray, nnx.state(vit))
    adapted = peft.apply(models.DistilledViT(vit, nnx.Rngs(1)), peft.full())

    def student(delta, backbone, batch, key):
        return adapted.model(delta, backbone)(batch["x"], key)

    def teacher(backbone, batch):
        return jnp.eye(3)[2 - batch["label"]]

    task = tasks.with_distillation_token(student, teacher)
    batch = {"x": PIXELS, "label": jnp.arange(3)}

    def total(delta):
        return jnp.sum(task.loss(delta, adapted.backbone, batch, None)[0])

    gradient = jax.grad(total)(adapted.delta)
    for name in ("distillation_token", "distillation_position", "cls_token"):
        found = [x for path, x in jax.tree.leaves_with_path(gradient) if name in str(path)]  # fmt: skip
        assert np.any(found[0])
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(vit))


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="expected model to be a ViTForImage"):
        models.DistilledViT(small().vit, nnx.Rngs(0))
