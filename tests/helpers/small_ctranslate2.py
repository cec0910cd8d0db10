"""A Whisper of transformers as a file of CTranslate2, written by hand."""

import struct
from typing import Any

import numpy as np

ALIAS = ("decoder/projection/weight", "decoder/embeddings/weight")
# (theirs, ours) inside of a layer of either half; the last two of decoders alone.
PARTS = (
    ("final_layer_norm", "ffn/layer_norm"),
    ("fc1", "ffn/linear_0"),
    ("fc2", "ffn/linear_1"),
    ("self_attn_layer_norm", "self_attention/layer_norm"),
    ("self_attn.out_proj", "self_attention/linear_1"),
    ("encoder_attn_layer_norm", "attention/layer_norm"),
    ("encoder_attn.q_proj", "attention/linear_0"),
    ("encoder_attn.out_proj", "attention/linear_2"),
)
FUSED = (
    ("self_attn", "qkv", "self_attention/linear_0"),
    ("encoder_attn", "kv", "attention/linear_1"),
)
CODES = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}


def variables_of(theirs: Any, dtype: str = "float32") -> dict[str, np.ndarray]:
    """The variables of a `WhisperForConditionalGeneration` under CTranslate2's names."""
    state = {
        name.removeprefix("model."): tensor.detach().numpy().astype(dtype)
        for name, tensor in theirs.state_dict().items()
    }
    config, found = theirs.config, {}

    def put(name: str, module: str) -> None:
        is_norm = "layer_norm" in name
        words = ("gamma", "beta") if is_norm else ("weight", "bias")
        for word, last in zip(words, ("weight", "bias"), strict=True):
            if f"{module}.{last}" in state:
                found[f"{name}/{word}"] = state[f"{module}.{last}"]

    for side in ("encoder", "decoder"):
        found[f"{side}/num_heads"] = np.int16(
            getattr(config, f"{side}_attention_heads")
        )
        found[f"{side}/pre_norm"] = np.int8(1)
        positions = state[f"{side}.embed_positions.weight"]
        found[f"{side}/position_encodings/encodings"] = positions
        put(f"{side}/layer_norm", f"{side}.layer_norm")
        for layer in range(getattr(config, f"{side}_layers")):
            ours, above = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            for module, name in PARTS:
                put(f"{ours}/{name}", f"{above}.{module}")
            for module, letters, name in FUSED:
                if f"{above}.{module}.k_proj.weight" not in state:
                    continue
                for last in ("weight", "bias"):
                    keys = [f"{above}.{module}.{x}_proj.{last}" for x in letters]
                    zeros = np.zeros(config.d_model, dtype)  # keys have no bias
                    rows = [state.get(key, zeros) for key in keys]
                    found[f"{ours}/{name}/{last}"] = np.concatenate(rows)
    for name in ("encoder/conv1", "encoder/conv2"):
        put(name, name.replace("/", "."))
    put("decoder/embeddings", "decoder.embed_tokens")
    return found


def file_of(
    variables: dict[str, np.ndarray], kind: str = "WhisperSpec", version: int = 6
) -> bytes:
    """The bytes of a model.bin."""

    def text(words: str) -> bytes:
        raw = words.encode() + b"\0"
        return struct.pack("<H", len(raw)) + raw

    packed = struct.pack("<I", version) + text(kind)
    packed += struct.pack("<II", 3, len(variables))
    for name, array in sorted(variables.items()):
        array = np.asarray(array)
        packed += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        packed += struct.pack("<BI", CODES[array.dtype.name], array.nbytes)
        packed += array.tobytes()
    return packed + struct.pack("<I", 1) + text(ALIAS[0]) + text(ALIAS[1])
