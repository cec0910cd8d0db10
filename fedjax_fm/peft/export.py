"""Whole models as Hugging Face folders.

Config.json and model.safetensors under Hugging Face's names.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from fedjax_fm.models.locate import locate
from fedjax_fm.models.quantized import Frozen
from fedjax_fm.peft.atomic import whole_folder
from fedjax_fm.peft.merge import merge
from fedjax_fm.peft.method import parameter_paths
from fedjax_fm.peft.names import Names
from fedjax_fm.peft.targets import Wrapper, named_modules

# What lies beside a model's weights and does not depend on them: of its tokenizer, of
# generation, of images.
BESIDE = (
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    *(
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
    ),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json"),
)


def save_merged(
    folder: str | os.PathLike[str],
    model: nnx.Module,
    fields: Mapping[str, Any],
    *,
    base: str | os.PathLike[str] | None = None,
) -> None:
    """Writes a model with its LoRA, DoRA, (IA)³ and tokens merged into the weights, for
    transformers or `from_pretrained`.

    Args:
      model: one of ours, adapted (`nnx.merge(graphdef, state.delta, backbone)`) or plain.
      fields: of config.json, such as those of the checkpoint that it came from; written
        as they are, but for `tie_word_embeddings`, which is false where the model's
        head has weights of its own.
      base: the checkpoint that it came from, a folder or a hub id: its tokenizer's
        files and its generation_config.json are copied. None writes neither:
        `AutoTokenizer` then needs the base's folder.

    The folder appears whole or not at all.

    Raises:
      FileNotFoundError: a base that has no tokenizer.
      ValueError: quantised weights (`models.dequantize` them first); a method whose
        parameters have no place in such a file (adapters, prompts, prefixes), or a
        model that does not say how Hugging Face names it.
    """
    if not hasattr(model, "hugging_face"):
        raise ValueError(f"{type(model).__name__} has no counterpart at Hugging Face")
    if jax.tree.leaves(nnx.state(model, Frozen)):
        raise ValueError(
            "a Hugging Face folder holds dense weights, but this model's are "
            "quantised; dequantize it first"
        )
    model = merge(model)
    virtual = {
        p
        for p, m in named_modules(model)
        if p.rpartition(".")[2] in ("prompt", "prefix") or isinstance(m, Wrapper)
    }
    if virtual:
        raise ValueError(
            f"these have no place in a model's own files: {sorted(virtual)}; save "
            "the adapter instead"
        )
    names, tensors = Names(model), {}
    for path, variable in parameter_paths(model).items():
        array, layers = np.asarray(variable[...]), names.layers(".".join(path))
        for number, (name, transposed) in enumerate(names.parameter(".".join(path))):
            row = array if layers is None else array[number]
            tensors[name] = np.ascontiguousarray(
                _torch_layout(row, path, model) if transposed else row
            )
    text = json.dumps(_fields_of(model, fields), indent=2, sort_keys=True) + "\n"
    beside = [] if base is None else _files_beside(base)
    with whole_folder(folder) as new:
        (new / "config.json").write_text(text, encoding="utf-8")
        save_file(
            dict(sorted(tensors.items())),
            new / "model.safetensors",
            metadata={"format": "pt"},
        )
        for path in beside:
            shutil.copyfile(path, new / path.name)


def _fields_of(model: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields`, which do not say that the head is tied where the model has weights of
    their own for it: a reader would drop them.
    """
    untied = hasattr(model, "lm_head") and bool(fields.get("tie_word_embeddings"))
    return {**fields, "tie_word_embeddings": False} if untied else dict(fields)


def _files_beside(base: str | os.PathLike[str]) -> list[Path]:
    place = Path(base).expanduser()
    place = place if place.is_dir() else locate(base).folder
    found = [place / name for name in BESIDE if (place / name).is_file()]
    if not any(
        path.name.startswith(("tokenizer", "vocab", "spiece", "sentencepiece"))
        for path in found
    ):
        there = sorted(path.name for path in place.iterdir())
        raise FileNotFoundError(
            f"{place} has no tokenizer to copy; found {there}; base=None writes none"
        )
    return found


def _torch_layout(kernel: np.ndarray, path: tuple[str, ...], model: Any) -> np.ndarray:
    """[in, out] as torch's [out, in], or as the convolution over patches that it is there."""
    if not any(word.startswith("patch_embedding") for word in path):
        return kernel.T
    config = getattr(model.config, "vision_config", model.config)
    return kernel.T.reshape(
        -1, config.num_channels, config.patch_size, config.patch_size
    )
