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


def tiny() -> bytes:
    """A whole file of the smallest model, of ones."""
    ones: dict[str, tuple[int, ...]] = {
        "encoder/conv1/weight": (2, 3, 3),
        "encoder/conv1/bias": (2,),
        "encoder/conv2/weight": (2, 2, 3),
        "encoder/conv2/bias": (2,),
        "decoder/embeddings/weight": (4, 2),
    }
    for side, attentions in (
        ("encoder", ("self_attention",)),
        ("decoder", ("self_attention", "attention")),
    ):
        ones[f"{side}/position_encodings/encodings"] = (5, 2)
        layer = f"{side}/layer_0"
        for linear, shape in (("linear_0", (3, 2)), ("linear_1", (2, 3))):
            ones[f"{layer}/ffn/{linear}/weight"] = shape
            ones[f"{layer}/ffn/{linear}/bias"] = shape[:1]
        norms = [f"{side}/layer_norm", f"{layer}/ffn/layer_norm"]
        for attention in attentions:
            norms.append(f"{layer}/{attention}/layer_norm")
            rows = (6, 2) if attention == "self_attention" else (2, 4, 2)
            for number, n in enumerate(rows):
                ones[f"{layer}/{attention}/linear_{number}/weight"] = (n, 2)
                ones[f"{layer}/{attention}/linear_{number}/bias"] = (n,)
        for norm in norms:
            ones[f"{norm}/gamma"] = ones[f"{norm}/beta"] = (2,)
    found = {name: np.ones(shape, np.float32) for name, shape in ones.items()}
    for name in found:
        if name.endswith(("self_attention/linear_0/bias", "/attention/linear_1/bias")):
            found[name][:4] = 0  # keys have none
    heads = {f"{side}/num_heads": np.int16(1) for side in ("encoder", "decoder")}
    return file_of(found | heads)


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
