"""What is read from outside, each with a small file that is right."""

import dataclasses
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import small_checkpoints
import small_ctranslate2
import tiny_gguf
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft
from fedjax_fm.datasets.packaged.spoken import read_wav
from fedjax_fm.finetune import files, settings
from fedjax_fm.models.onnx_file import read_onnx
from fedjax_fm.runs.checkpoint import Checkpoints
from fedjax_fm.runs.folder import RunFolder


class Reader(NamedTuple):
    """Something that reads files.

    Attributes:
      write: makes right files in a folder.
      read: reads them; an error of ours is an answer.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], Any]


LLAMA = small_checkpoints.LLAMA | {"num_hidden_layers": 1}


def _write_model(folder: Path) -> None:
    small_checkpoints.checkpoint(folder, LLAMA)


def _read_model(folder: Path) -> None:
    models.from_pretrained(folder)


def _write_tokenizer(folder: Path) -> None:
    _write_model(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()


def _read_tokenizer(folder: Path) -> None:
    models.load_tokenizer(folder).encode("red green")


def _write_gguf(folder: Path) -> None:
    model = models.LlamaForCausalLM(tiny_gguf.CONFIG, nnx.Rngs(0))
    tiny_gguf.write(folder / "model.gguf", tiny_gguf.tensors_of(model))


def _read_gguf(folder: Path) -> None:
    models.from_pretrained(folder / "model.gguf")


BASE: dict[str, Any] = {}


def _base() -> Any:
    if not BASE:
        fields = LLAMA | {"vocab_size": 50}
        BASE["model"] = models.from_config(fields)
    return BASE["model"]


def _write_adapter(folder: Path) -> None:
    adapted = peft.apply(_base(), peft.lora(2, targets=r"q_proj"))
    adapted.save_pretrained(folder, adapted.delta)


def _read_adapter(folder: Path) -> None:
    peft.load_pretrained(folder, _base())


def _write_population(folder: Path) -> None:
    clients = [{"x": np.arange(4.0), "y": np.arange(4)}, {"x": np.ones(2), "y": [1, 2]}]
    arrays = [{name: np.asarray(x) for name, x in one.items()} for one in clients]
    ffm.Population.from_clients(arrays).save(folder / "population")


def _read_population(folder: Path) -> None:
    population = ffm.Population.open(folder / "population")
    population.client(0)


def _state() -> dict[str, Any]:
    return {"w": jnp.arange(6.0), "round": jnp.int32(3)}


def _write_checkpoint(folder: Path) -> None:
    checkpoints = Checkpoints(folder / "checkpoint")
    checkpoints.save(3, _state())
    checkpoints.close()


def _read_checkpoint(folder: Path) -> None:
    Checkpoints(folder / "checkpoint").restore_newest(_state())


def _write_run(folder: Path) -> None:
    run = RunFolder.create(folder / "run", {"rate": 0.1}, "mine")
    (run.path / "metrics.jsonl").write_text('{"round": 1, "loss": 0.5}\n' * 3)


def _read_run(folder: Path) -> None:
    run = RunFolder.open(folder / "run")
    assert isinstance(run.config, dict)


def _write_settings(folder: Path) -> None:
    chosen = settings.Settings(model="gpt2", data="chats.jsonl", rounds=3)
    (folder / "settings.toml").write_text(settings.as_toml(chosen), encoding="utf-8")


def _read_settings(folder: Path) -> None:
    fields = settings.read_toml(folder / "settings.toml")
    dataclasses.replace(settings.Settings(model="gpt2", data="chats.jsonl"), **fields)


ROWS = [{"text": "one two", "label": "a", "user": "ann"}, {"text": "x", "label": "b"}]


def _write_data(folder: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines)
    (folder / "rows.json").write_text(json.dumps(ROWS))
    (folder / "rows.csv").write_text("text,label\none,a\ntwo,b\n")


def _read_data(folder: Path) -> None:
    for name in ("rows.jsonl", "rows.json", "rows.csv"):
        files.read(str(folder / name))


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2, len(payload)]) + payload


def _write_onnx(folder: Path) -> None:
    values = np.arange(6, dtype=np.float32).tobytes()
    tensor = b"\x08\x02\x08\x03\x10\x01" + _field(8, b"w") + _field(9, values)
    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"MatMul")
    graph = _field(1, node) + _field(5, tensor)
    (folder / "model.onnx").write_bytes(_field(7, graph))


def _read_onnx(folder: Path) -> None:
    read_onnx((folder / "model.onnx").read_bytes())


def _write_ctranslate2(folder: Path) -> None:
    (folder / "model.bin").write_bytes(small_ctranslate2.tiny())


def _read_ctranslate2(folder: Path) -> None:
    models.from_pretrained(folder / "model.bin")


def _write_wav(folder: Path) -> None:
    with wave.open(str(folder / "said.wav"), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(np.arange(40, dtype="<i2").tobytes())


def _read_wav(folder: Path) -> None:
    read_wav((folder / "said.wav").read_bytes(), "said.wav")


READERS = {
    "safetensors and configuration": Reader(_write_model, _read_model),
    "tokenizer": Reader(_write_tokenizer, _read_tokenizer),
    "gguf": Reader(_write_gguf, _read_gguf),
    "adapter": Reader(_write_adapter, _read_adapter),
    "population": Reader(_write_population, _read_population),
    "checkpoint": Reader(_write_checkpoint, _read_checkpoint),
    "run folder": Reader(_write_run, _read_run),
    "settings": Reader(_write_settings, _read_settings),
    "data files": Reader(_write_data, _read_data),
    "onnx": Reader(_write_onnx, _read_onnx),
    "ctranslate2": Reader(_write_ctranslate2, _read_ctranslate2),
    "wav": Reader(_write_wav, _read_wav),
}
