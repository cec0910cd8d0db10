"""Files that models are read from: shards, old names, heads that are new, and what does not fit."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import fedjax_fm as ffm
from fedjax_fm import models
from fedjax_fm.models import WeightError


def copy_of(folder, target):
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def in_shards(folder, n: int = 3):
    """The same tensors in several files with their index, as
    `save_pretrained(max_shard_size=...)` leaves them.
    """
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {
        name: f"model-{i % n + 1:05d}-of-{n:05d}.safetensors"
        for i, name in enumerate(sorted(tensors))
    }
    for shard in set(places.values()):
        save_file(
            {name: tensors[name] for name, place in places.items() if place == shard},
            folder / shard,
        )
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": places,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def equal(one: nnx.Module, other: nnx.Module) -> bool:
    return jax.tree.all(
        jax.tree.map(
            lambda a, b: bool((a == b).all()), nnx.state(one), nnx.state(other)
        )
    )


def test_shards_are_one_model(tiny_bert, tiny_llama, tmp_path):
    for number, folder in enumerate((tiny_bert, tiny_llama)):
        (tmp_path / str(number)).mkdir()
        shards = in_shards(copy_of(folder, tmp_path / str(number)))
        assert equal(models.from_pretrained(shards), models.from_pretrained(folder))
    before = ffm.models.provenance(shards)["sha256"]
    shard = sorted(shards.glob("model-*.safetensors"))[1]
    tensors = load_file(shard)
    save_file({name: array + 1 for name, array in tensors.items()}, shard)
    assert ffm.models.provenance(shards)["sha256"] != before


def test_shards_that_are_missing_or_broken_are_named(tiny_bert, tmp_path):
    shards = in_shards(copy_of(tiny_bert, tmp_path))
    shard, index = (
        shards / "model-00002-of-00003.safetensors",
        shards / "model.safetensors.index.json",
    )
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-100])
    with pytest.raises(
        WeightError,
        match=r"model-00002-of-00003.safetensors .* is truncated or corrupt",
    ):
        models.from_pretrained(shards)
    shard.unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"lists 3 shards, of which these are missing: \['model-00002-of-00003",
    ):
        models.from_pretrained(shards)
    index.write_text("[]")
    with pytest.raises(WeightError, match="is no index of shards"):
        models.from_pretrained(shards)


def test_norms_under_their_old_names_and_other_tasks_heads(tiny_bert, tmp_path):
    folder = copy_of(tiny_bert, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in tensors.items()
    }
    old["cls.predictions.bias"] = np.ones(3, np.float32)
    old["bert.embeddings.position_ids"] = np.arange(64)[None]
    save_file(old, folder / "model.safetensors")
    assert any(name.endswith("gamma") for name in old)
    assert equal(models.from_pretrained(folder), models.from_pretrained(tiny_bert))


def test_numbers_that_are_no_floats_are_refused(tiny_bert, tmp_path):
    folder = copy_of(tiny_bert, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    save_file(
        tensors | {name: tensors[name].astype(np.int8)}, folder / "model.safetensors"
    )
    with pytest.raises(
        WeightError, match=f"{name}: expected floating point numbers, got int8"
    ):
        models.from_pretrained(folder)


def test_heads_that_the_file_lacks_are_drawn_from_the_seed_and_others_are_not(
    tiny_bert, tiny_llama
):
    for folder, head in ((tiny_bert, "classifier"), (tiny_llama, "score")):
        one, same, other = (
            models.from_pretrained(folder, num_labels=3, seed=seed)
            for seed in (1, 1, 2)
        )

        def kernel(model, head=head):
            return np.asarray(getattr(model, head).kernel[...])

        np.testing.assert_array_equal(kernel(one), kernel(same))
        assert 0.01 < kernel(one).std() < 0.03
        assert np.abs(kernel(one) - kernel(other)).max() > 0


def test_a_model_of_another_architecture_says_what_does_not_match(tiny_bert, tmp_path):
    folder = copy_of(tiny_bert, tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(fields | {"model_type": "roberta", "vocab_size": 900})
    )
    with pytest.raises(
        WeightError,
        match=r"does not fit RobertaModel: embeddings\.word_embeddings\.weight: expected",
    ):
        models.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(
        WeightError,
        match=r"missing transformer\.h\.0\.attn\.c_attn\.bias; .*; and \d+ more",
    ):
        models.from_pretrained(folder)
