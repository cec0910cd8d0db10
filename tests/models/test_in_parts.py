"""Weights that go from their file to each device in parts."""

import jax
import numpy as np
import pytest
from flax import nnx
from small_checkpoints import BERT, GPT2, LLAMA, VIT, checkpoint

from fedjax_fm import models
from fedjax_fm.engine import client_mesh
from fedjax_fm.models.weights import Tensors, WeightError

KINDS = {"llama": LLAMA, "bert": BERT, "gpt2": GPT2, "vit": VIT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("parts")
    for name, fields in KINDS.items():
        checkpoint(place / name, fields)
    return place


def leaves(model):
    return jax.tree.leaves(nnx.state(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_those_of_the_file(folder, kind, dtype):
    whole = models.from_pretrained(folder / kind, dtype=dtype)
    split = models.from_pretrained(folder / kind, dtype=dtype, mesh=client_mesh(4, 2))
    n_split = 0
    for expected, leaf in zip(leaves(whole), leaves(split), strict=True):
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected))
        n_split += not leaf.is_fully_replicated
    assert n_split > 0


def test_no_matrix_is_read_whole(folder, monkeypatch):
    sizes = []
    read_part = Tensors.read_part

    def noted(self, name, transposed, index):
        part = read_part(self, name, transposed, index)
        sizes.append((part.size, int(np.prod(self.shape(name)))))
        return part

    monkeypatch.setattr(Tensors, "read_part", noted)
    monkeypatch.setattr(Tensors, "read", None)
    model = models.from_pretrained(folder / "llama", mesh=client_mesh(2, 2))
    assert all(leaf.is_fully_addressable for leaf in leaves(model))
    assert sum(2 * part == whole for part, whole in sizes) > 10  # halves


def test_a_new_head_and_what_does_not_fit(folder):
    mesh = client_mesh(2, 2)
    whole = models.from_pretrained(folder / "bert", num_labels=3, seed=5)
    split = models.from_pretrained(folder / "bert", num_labels=3, seed=5, mesh=mesh)
    for expected, leaf in zip(leaves(whole), leaves(split), strict=True):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected))
    other = folder / "bert" / "config.json"
    text = other.read_text(encoding="utf-8")
    wider = text.replace(
        f'"intermediate_size": {BERT["intermediate_size"]}', '"intermediate_size": 8'
    )
    assert wider != text
    other.write_text(wider, encoding="utf-8")
    with pytest.raises(WeightError, match=r"expected shape .* got"):
        models.from_pretrained(folder / "bert", mesh=mesh)
    other.write_text(text, encoding="utf-8")


def test_what_has_no_parts_is_refused(folder, tmp_path):
    mesh = client_mesh(2, 2)
    with pytest.raises(ValueError, match="frozen='nf4' packs whole weights"):
        models.from_pretrained(folder / "llama", frozen="nf4", mesh=mesh)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"model\.gguf is another format"):
        models.from_pretrained(tmp_path / "model.gguf", mesh=mesh)
