"""Whisper in the file model.bin of CTranslate2, whose matrices are f16 or f32.

    u32 version (6), text: kind of model, u32 revision, u32 number of variables,
    of each: text: name, u8 dimensions, u32 each, u8 type, u32 bytes, the numbers,
    u32 number of aliases, of each: text: alias, text: name

A text is u16, its length with the zero at its end, and the bytes. The query's, key's and
value's matrices lie on one another, in attention to the encoder's output those of key
and value. Keys have a bias here, of zeros, which Whisper has not.

References:
  Radford et al., 2022, arXiv 2212.04356 (Whisper); the format is that of CTranslate2.
"""

import math
import os
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.models.cursor import Cursor
from fedjax_fm.models.weights import ReadAtOnce, WeightError

VERSION = 6
KIND = "WhisperSpec"
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
# Multilingual tokens of OpenAI's: the end of text and what begins a transcript.
_END, _START = 50257, 50258
_PARTS = {
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
}
# Matrices that lie on one another.
_FUSED = {
    "self_attention/linear_0": [f"self_attn.{one}_proj" for one in "qkv"],
    "attention/linear_1": [f"encoder_attn.{one}_proj" for one in "kv"],
}
_OUTSIDE = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.layer_norm",
    "encoder/position_encodings": "encoder.embed_positions",
    "decoder/embeddings": "decoder.embed_tokens",
    "decoder/layer_norm": "decoder.layer_norm",
    "decoder/position_encodings": "decoder.embed_positions",
}
_LAST = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "encodings": "weight",
}


class Variables(NamedTuple):
    """What a file of CTranslate2 holds.

    Attributes:
      kind: of the model, such as "WhisperSpec".
      arrays: {name: numbers}.
      aliases: {other name: name}.
    """

    kind: str
    arrays: dict[str, np.ndarray]
    aliases: dict[str, str]


def is_ctranslate2(path: Path) -> bool:
    """Whether a file begins as those of CTranslate2.

    Args:
      path: of the file.
    """
    if path.suffix != ".bin" or not path.is_file():
        return False
    with open(path, "rb") as handle:
        return handle.read(4) == struct.pack("<I", VERSION)


def read_ctranslate2(data: bytes) -> Variables:
    """Reads a file of CTranslate2.

    Args:
      data: the file.

    Returns:
      Its variables, which share the memory of `data`.

    Raises:
      ValueError: another version, fewer bytes than the file says, or more.

    Example:
      >>> read_ctranslate2(struct.pack("<IH2sII", 6, 2, b"x", 1, 0) + bytes(4)).kind
      'x'
    """
    cursor = Cursor(data)
    (version,) = cursor.take("I")
    if version != VERSION:
        raise ValueError(f"expected version {VERSION}, got {version}")
    kind = _text(cursor)
    _, n_arrays = cursor.take("2I")  # a revision of the kind
    arrays = dict(_array(cursor) for _ in range(n_arrays))
    (n_aliases,) = cursor.take("I")
    aliases = dict((_text(cursor), _text(cursor)) for _ in range(n_aliases))
    if cursor.at != len(data):
        raise ValueError(f"{len(data) - cursor.at} bytes behind its end")
    return Variables(kind, arrays, aliases)


def _text(cursor: Cursor) -> str:
    """The next text, without the zero at its end."""
    (length,) = cursor.take("H")
    return cursor.raw(length).rstrip(b"\0").decode("utf-8")


def _array(cursor: Cursor) -> tuple[str, np.ndarray]:
    """The next variable and its name."""
    name = _text(cursor)
    (rank,) = cursor.take("B")
    shape = cursor.take(f"{rank}I")
    code, size = cursor.take("BI")
    if code not in _TYPES:
        raise ValueError(f"{name} has numbers of type {code}")
    kind, count = np.dtype(_TYPES[code]), math.prod(shape)
    if size != kind.itemsize * count:
        raise ValueError(f"{name}: {size} bytes for {kind}{list(shape)}")
    return name, cursor.array(kind.str, count).reshape(shape)


class CTranslate2File(ReadAtOnce):
    """An opened model.bin of CTranslate2 with a Whisper.

    Args:
      path: of the file.

    Raises:
      FileNotFoundError, WeightError: there is no such file, or it is not a whole one of
        that form.

    Example:
      >>> from fedjax_fm.models.ctranslate2_file import CTranslate2File
      >>> opened = CTranslate2File("model.bin")  # doctest: +SKIP
      >>> opened.fields()["d_model"]  # doctest: +SKIP
      512
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not a file")
        data = self.path.read_bytes()
        try:
            self._found = read_ctranslate2(data)
            if self._found.kind != KIND:
                raise ValueError(f"expected a {KIND}, got {self._found.kind!r}")
            self._tensors = _named(self._found.arrays)
            self.fields()
        except (ValueError, KeyError, struct.error) as error:
            raise WeightError(
                f"{self.path} ({len(data)} bytes) is not a Whisper of CTranslate2, or "
                f"not a whole one: {error}. Fetch it again."
            ) from error

    def fields(self) -> dict[str, Any]:
        """The model's configuration, as the fields of a config.json."""
        tensors = self._tensors
        vocabulary, width = tensors["model.decoder.embed_tokens.weight"].shape
        sizes = {}
        for side in ("encoder", "decoder"):
            layers = {
                name.split(".")[3]
                for name in tensors
                if name.startswith(f"model.{side}.layers.")
            }
            wide, _ = tensors[f"model.{side}.layers.0.fc1.weight"].shape
            sizes[f"{side}_layers"] = len(layers)
            sizes[f"{side}_ffn_dim"] = wide
            heads = int(self._found.arrays[f"{side}/num_heads"])
            sizes[f"{side}_attention_heads"] = heads
        return {
            "model_type": "whisper",
            "vocab_size": vocabulary,
            "d_model": width,
            "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
            "max_source_positions": len(
                tensors["model.encoder.embed_positions.weight"]
            ),
            "max_target_positions": len(
                tensors["model.decoder.embed_positions.weight"]
            ),
            "pad_token_id": _END,
            "decoder_start_token_id": _START,
            **sizes,
        }


def _named(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under Hugging Face's names; settings are left out."""
    found = {}
    for name, array in arrays.items():
        if array.ndim and array.dtype.kind == "f":
            found |= _tensors_of(name, array)
    # One bias of keys that is not zero is none that a Whisper could have.
    for name in [name for name in found if name.endswith("k_proj.bias")]:
        if np.any(found.pop(name)):
            raise ValueError(f"{name} is not zero")
    return found


def _tensors_of(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """{Hugging Face's name: tensor} of one variable."""
    owner, _, last = name.rpartition("/")
    if last not in _LAST:
        raise ValueError(f"a variable {name!r}")
    end = _LAST[last]
    if owner in _OUTSIDE:
        return {f"model.{_OUTSIDE[owner]}.{end}": array}
    layer = re.fullmatch(r"(encoder|decoder)/layer_(\d+)/(.*)", owner)
    part = layer[3] if layer else owner
    if not layer or part not in _PARTS | _FUSED:
        raise ValueError(f"a variable {name!r}")
    above = f"model.{layer[1]}.layers.{layer[2]}"
    if part in _PARTS:
        return {f"{above}.{_PARTS[part]}.{end}": array}
    names = _FUSED[part]
    if len(array) % len(names):
        raise ValueError(f"{name} has {len(array)} rows for {len(names)} matrices")
    rows = np.split(array, len(names))
    return {f"{above}.{one}.{end}": own for one, own in zip(names, rows, strict=True)}
