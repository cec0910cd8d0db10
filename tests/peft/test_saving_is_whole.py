"""Folders appear whole or not at all, and hold what their readers ask for."""

import json
import os
import stat

import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.models.families import from_config
from fedjax_fm.peft import export, folder

FIELDS = {
    "model_type": "llama", "vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 12, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return from_config(FIELDS)


def refused_savings(model):
    """(what is tried, its error)."""
    adapters = peft.apply(model, peft.houlsby(2))
    two_dropouts = peft.apply(
        model,
        peft.combine(
            peft.lora(2, targets=["q_proj"]),
            peft.lora(2, targets=["k_proj"], dropout=0.5),
        ),
    )
    return {
        "a method without a place in the format": lambda to: peft.save_pretrained(
            to, *adapters
        ),
        "two dropouts": lambda to: peft.save_pretrained(to, *two_dropouts),
        "adapters that cannot be merged": lambda to: peft.save_merged(
            to, nnx.merge(*adapters), FIELDS
        ),
        "a base without a tokenizer": lambda to: peft.save_merged(
            to, model, FIELDS, base=to.parent
        ),
        "fields that are no JSON": lambda to: peft.save_merged(
            to, model, {**FIELDS, "a": object()}
        ),
    }


NAMES = [
    "a method without a place in the format",
    "two dropouts",
    "adapters that cannot be merged",
    "a base without a tokenizer",
    "fields that are no JSON",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_saving_leaves_nothing(name, model, tmp_path):
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
        refused_savings(model)[name](tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


SAVINGS = {
    "adapter": (
        folder,
        lambda to, model: peft.save_pretrained(
            to, *peft.apply(model, peft.lora(2, targets=["q_proj"]))
        ),
    ),
    "model": (export, lambda to, model: peft.save_merged(to, model, FIELDS)),
}


@pytest.mark.parametrize("name", SAVINGS)
def test_a_disk_that_is_full_leaves_what_was_there(name, model, tmp_path, monkeypatch):
    module, save = SAVINGS[name]
    save(tmp_path / "old", model)
    (tmp_path / "old" / "README.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    for to in ("old", "new"):
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path / to, model)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()
    } == before


@pytest.mark.parametrize("name", SAVINGS)
def test_a_folder_is_written_anew_and_keeps_its_other_files(name, model, tmp_path):
    _, save = SAVINGS[name]
    os.umask(umask := os.umask(0))
    save(tmp_path / "deep" / "er", model)
    first = {
        path.name: path.read_bytes() for path in (tmp_path / "deep" / "er").iterdir()
    }
    (tmp_path / "deep" / "er" / "README.md").write_text("mine")
    for file in first:
        (tmp_path / "deep" / "er" / file).write_text("old")
    save(tmp_path / "deep" / "er", model)
    again = {
        path.name: path.read_bytes() for path in (tmp_path / "deep" / "er").iterdir()
    }
    assert again == {**first, "README.md": b"mine"}
    assert stat.S_IMODE((tmp_path / "deep" / "er").stat().st_mode) == 0o777 & ~umask
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]


@pytest.mark.parametrize("name", SAVINGS)
def test_a_file_is_no_folder(name, model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="got the file"):
        SAVINGS[name][1](tmp_path / "file", model)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_merged_model_takes_its_tokenizer_along(model, tmp_path):
    tokenizers, transformers = (
        pytest.importorskip("tokenizers"),
        pytest.importorskip("transformers"),
    )
    words = {"[UNK]": 0, "a": 1, "b": 2}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(words, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]"
    )
    fast.chat_template = "{{ messages }}"
    base = tmp_path / "base"
    fast.save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    (base / "model.safetensors").write_text("other weights")
    (base / "training_args.bin").write_text("not a model's")
    peft.save_merged(tmp_path / "merged", model, FIELDS, base=base)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert read("b a c")["input_ids"] == fast("b a c")["input_ids"] == [2, 1, 0]
    assert read.chat_template == "{{ messages }}"
    assert json.loads((tmp_path / "merged/generation_config.json").read_text()) == {
        "eos_token_id": [2, 1]
    }
    assert not (tmp_path / "merged/training_args.bin").exists()
    again = models.from_pretrained(tmp_path / "merged")
    ids = np.array([[1, 2]])
    np.testing.assert_array_equal(again(ids), model(ids))
