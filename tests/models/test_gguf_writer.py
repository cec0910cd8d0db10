"""Merged models as .gguf files: read back by us and by transformers."""

import dataclasses

import gguf
import jax
import numpy as np
import pytest
from flax import nnx
from tiny_gguf import CONFIG, permute, tensors_of, write

from fedjax_fm import models, peft
from fedjax_fm.models import gguf_writer
from fedjax_fm.models.gguf_file import GGUFFile

IDS = np.array([[5, 8, 13, 21, 34, 2]], np.int32)


@pytest.fixture(scope="module")
def base(tmp_path_factory, random_llama):
    path = tmp_path_factory.mktemp("gguf") / "base.gguf"
    return write(path, tensors_of(random_llama(CONFIG)), quantisation="Q8_0")


@pytest.fixture(scope="module")
def merged(base):
    model = models.from_pretrained(base)
    method = peft.lora(2, 4.0, targets=["q_proj", "k_proj", "down_proj"])
    adapted = peft.apply(model, method)
    random = np.random.default_rng(0)

    def drawn(leaf: jax.Array) -> np.ndarray:
        return 0.3 * random.normal(size=leaf.shape).astype("float32")

    delta = jax.tree.map(drawn, adapted.delta)
    return peft.merge(adapted.model(delta))


def test_rows_are_permuted_as_the_converter_does():
    rows = np.arange(16 * 3).reshape(16, 3)
    np.testing.assert_array_equal(gguf_writer.permute(rows, 2), permute(rows, 2))


def test_what_is_written_is_read_again(base, merged, tmp_path):
    path = tmp_path / "tuned.gguf"
    models.save_gguf(path, merged, like=base, precision="f32")
    again = models.from_pretrained(path)
    pairs = zip(
        jax.tree.leaves(nnx.state(merged)),
        jax.tree.leaves(nnx.state(again)),
        strict=True,
    )
    assert all(np.array_equal(one, other) for one, other in pairs)
    assert not np.allclose(merged(IDS), models.from_pretrained(base)(IDS), atol=1e-2)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.gguf"]


def test_metadata_are_those_of_the_base(base, merged, tmp_path):
    path = tmp_path / "tuned.gguf"
    models.save_gguf(path, merged, like=base)
    before, after = GGUFFile(base), GGUFFile(path)
    for name in before.fields:
        if not name.startswith(("GGUF.", "general.")):
            assert after.field(name) == before.field(name), name
    assert after.tensor_names == before.tensor_names
    text = "Hello, the world!"
    ids = [one.tokenizer().encode(text).ids for one in (before, after)]
    assert ids[0] == ids[1]
    assert after.chat_template() == before.chat_template()


class _Aligned(gguf.GGUFWriter):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.add_custom_alignment(256)


def test_tensors_lie_where_the_alignment_of_the_base_says(
    base, merged, tmp_path, monkeypatch
):
    aligned, tuned = tmp_path / "aligned.gguf", tmp_path / "tuned.gguf"
    with monkeypatch.context() as patched:
        patched.setattr(gguf, "GGUFWriter", _Aligned)
        write(aligned, tensors_of(models.from_pretrained(base)))
    models.save_gguf(tuned, merged, like=aligned, precision="f32")
    places = [int(tensor.data_offset) for tensor in gguf.GGUFReader(tuned).tensors]
    assert not any(place % 256 for place in places)
    np.testing.assert_array_equal(models.from_pretrained(tuned)(IDS), merged(IDS))


def test_half_precision_is_near(base, merged, tmp_path):
    path = tmp_path / "tuned.gguf"
    models.save_gguf(path, merged, like=base)
    again = models.from_pretrained(path)
    np.testing.assert_allclose(again(IDS), merged(IDS), atol=2e-2)


def test_transformers_reads_the_same_model(base, merged, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    models.save_gguf(tmp_path / "tuned.gguf", merged, like=base, precision="f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tuned.gguf"
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS, dtype=torch.int64)).logits.numpy()
    np.testing.assert_allclose(np.asarray(merged(IDS)), expected, atol=1e-4)


def test_what_does_not_fit_the_file_is_refused(base, merged, tmp_path, random_llama):
    path = tmp_path / "tuned.gguf"
    with pytest.raises(ValueError, match=r"none; write safetensors"):
        models.save_gguf(path, merged, like=tmp_path)
    with pytest.raises(ValueError, match="precision"):
        models.save_gguf(path, merged, like=base, precision="f64")  # type: ignore[arg-type]
    adapted = peft.apply(merged, peft.lora(2, targets=["q_proj"]))
    with pytest.raises(ValueError, match="merge the adapters first"):
        models.save_gguf(path, adapted.model(), like=base)
    untied = random_llama(dataclasses.replace(CONFIG, tie_word_embeddings=False))
    with pytest.raises(ValueError, match="only one of both"):
        models.save_gguf(path, untied, like=base)
    assert not path.exists()
