"""Writes a decoder as a .gguf file, with the metadata of the file that it came from."""

import os
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.models.gguf_file import FACTORS, OUTSIDE, GGUFFile

Precision = Literal["f16", "f32"]


def permute(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Puts the rows of a query or key projection into llama.cpp's order of rotations.

    Args:
      rows: [heads * d, ...], as Hugging Face has them.
      n_heads: of the projection.

    Returns:
      The same shape; `gguf_file.unpermute` is its inverse.

    Example:
      >>> permute(np.arange(4), n_heads=1).tolist()
      [0, 2, 1, 3]
    """
    width = rows.shape[0] // n_heads // 2
    paired = rows.reshape(n_heads, 2, width, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def save_gguf(
    path: str | os.PathLike[str],
    model: nnx.Module,
    *,
    like: str | os.PathLike[str],
    precision: Precision = "f16",
) -> None:
    """Writes a model as a .gguf file that llama.cpp and `from_pretrained` read.

    All metadata, such as the tokenizer and the chat template, are those of another
    file. Matrices are written in `precision`, vectors in f32; nothing is quantised.

    Args:
      path: of the new file; it appears whole or not at all.
      model: a `LlamaForCausalLM` whose adapters are merged (`peft.merge`).
      like: the .gguf file that the model was read from.
      precision: "f16", or "f32" for the same numbers.

    Raises:
      ValueError: `like` is no .gguf file, another precision, or a model that is not of
        that file: of another architecture, with adapters, with quantised weights.

    Example:
      >>> from fedjax_fm import models
      >>> model = models.from_pretrained("base.gguf")  # doctest: +SKIP
      >>> models.save_gguf("tuned.gguf", model, like="base.gguf")  # doctest: +SKIP
    """
    import gguf

    checks.choice("precision", precision, get_args(Precision))
    if Path(like).suffix != ".gguf":
        raise ValueError(
            f"a .gguf file takes its tokenizer from another one, and {os.fspath(like)} "
            "is none; write safetensors, and convert them with llama.cpp"
        )
    base = GGUFFile(like)
    tensors = _tensors_of(model, base)
    target = Path(path)
    scratch = target.with_name(target.name + ".part")
    writer = gguf.GGUFWriter(scratch, base.architecture)
    _copy_metadata(writer, base, gguf, precision)
    for name, array in tensors.items():
        kind = np.float16 if precision == "f16" and array.ndim > 1 else np.float32
        writer.add_tensor(name, np.ascontiguousarray(array, kind))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def _copy_metadata(writer: Any, base: GGUFFile, gguf: Any, precision: str) -> None:
    """Copies every field but those that the writer makes itself."""
    made = ("GGUF.", "general.architecture", "general.file_type")
    for name, field in base.fields.items():
        if name.startswith(made):
            continue
        if name == "general.alignment":
            writer.add_custom_alignment(field.contents())  # of the tensors, too
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)
    kinds = gguf.LlamaFileType
    writer.add_file_type(kinds.MOSTLY_F16 if precision == "f16" else kinds.ALL_F32)


def _tensors_of(model: nnx.Module, base: GGUFFile) -> dict[str, np.ndarray]:
    """{llama.cpp's name: array} of all parameters, in the order of the base's file."""
    found: dict[str, np.ndarray] = {}
    for words, variable in nnx.to_flat_state(nnx.state(model)):
        module, word = ".".join(map(str, words[:-1])), str(words[-1])
        kind = "bias" if word == "bias" else "weight"
        array = np.asarray(variable[...], np.float32)
        if word == "scale" and base.kind.centred:
            array = array + 1
        in_layer = base.kind.in_layer
        layer = module.removeprefix("model.layers.")
        if layer != module and layer in in_layer:
            for number, rows in enumerate(array):
                name = f"blk.{number}.{in_layer[layer]}.{kind}"
                found[name] = _as_stored(rows, word, in_layer[layer], model, base)
        elif module in OUTSIDE:
            found[f"{OUTSIDE[module]}.{kind}"] = array.T if word == "kernel" else array
        else:
            raise ValueError(
                f"{module}.{word} has no place in a .gguf file: merge the adapters "
                "first (peft.merge), and dequantize frozen weights"
            )
    if FACTORS in base.tensor_names:
        found[FACTORS] = base.dequantized(FACTORS)
    missing = [name for name in base.tensor_names if name not in found]
    extra = [name for name in found if name not in base.tensor_names]
    if missing or extra:
        raise ValueError(
            f"the model is not that of {base.path}: "
            f"{(missing or extra)[0]} is in only one of both"
        )
    return {name: found[name] for name in base.tensor_names}


def _as_stored(
    rows: np.ndarray, word: str, name: str, model: Any, base: GGUFFile
) -> np.ndarray:
    """One layer's array as llama.cpp stores it."""
    rows = rows.T if word == "kernel" else rows
    heads = {
        "attn_q": model.config.num_attention_heads,
        "attn_k": model.config.num_key_value_heads,
    }.get(name)
    if heads is None or not base.kind.permuted:
        return rows
    return permute(rows, heads)
