"""Writes whole models as Hugging Face folders: config.json and model.safetensors."""

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
from fedjax_fm.models.modules import Fixed
from fedjax_fm.models.quantized import Frozen
from fedjax_fm.peft.atomic import whole_folder
from fedjax_fm.peft.merge import merge
from fedjax_fm.peft.method import parameter_paths
from fedjax_fm.peft.names import Names
from fedjax_fm.peft.targets import Wrapper, named_modules

# Files beside a model's weights that do not depend on them: of its tokenizer, of
# generation, of images.
BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"),
    *("spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json"),
)
TOKENIZERS = ("tokenizer", "vocab", "spiece", "sentencepiece")  # beginnings of names


def save_merged(
    folder: str | os.PathLike[str],
    model: nnx.Module,
    fields: Mapping[str, Any],
    *,
    base: str | os.PathLike[str] | None = None,
) -> None:
    """Writes a model, its adapters merged, in Hugging Face's format.

    LoRA, DoRA, (IA)³ and trained tokens are merged. `models.from_pretrained` and
    transformers open the folder.

    Args:
      folder: where it is written; it appears whole or not at all.
      model: a model of `fedjax_fm.models`, adapted (`adapted.model(state.delta)`) or
        not.
      fields: of config.json, for example those of the checkpoint that it was read from.
        They are written as they are, except that `tie_word_embeddings` is false where
        the model's head has weights of its own.
      base: this checkpoint, a folder or a hub id. Its tokenizer's files and its
        generation_config.json are copied. None copies nothing: `AutoTokenizer` then
        needs the folder of the base.

    Raises:
      FileNotFoundError: the base has no tokenizer.
      ValueError: quantised weights (`models.dequantize` them first); a method whose
        parameters have no place in such a file (adapters, prompts, prefixes); or a
        model that has no counterpart at Hugging Face.

    Example:
      >>> import dataclasses, os, tempfile
      >>> from fedjax_fm import models, peft
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> fields = {"model_type": "llama", **dataclasses.asdict(config)}
      >>> with tempfile.TemporaryDirectory() as above:
      ...     folder = os.path.join(above, "merged")
      ...     save_merged(folder, adapted.model(), fields)
      ...     sorted(os.listdir(folder))
      ['config.json', 'model.safetensors']
    """
    if not hasattr(model, "hugging_face"):
        raise ValueError(f"{type(model).__name__} has no counterpart at Hugging Face")
    if jax.tree.leaves(nnx.state(model, Frozen)):
        raise ValueError(
            "a Hugging Face folder holds dense weights, but this model's are "
            "quantised; dequantize it first"
        )
    model = merge(model)
    _refuse_unmerged(model)
    tensors = _tensors_of(model)
    text = json.dumps(_fields_of(model, fields), indent=2, sort_keys=True) + "\n"
    beside = [] if base is None else _files_beside(base)
    with whole_folder(folder) as new:
        (new / "config.json").write_text(text, encoding="utf-8")
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        for path in beside:
            shutil.copyfile(path, new / path.name)


def _refuse_unmerged(model: nnx.Module) -> None:
    """Raises ValueError for what is left of methods that cannot be merged."""
    virtual = set()
    for path, module in named_modules(model):
        name = path.rpartition(".")[2]
        if name in ("prompt", "prefix") or isinstance(module, Wrapper):
            virtual.add(path)
    if virtual:
        raise ValueError(
            f"these have no place in a model's own files: {sorted(virtual)}; save "
            "the adapter instead"
        )


def _tensors_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """{Hugging Face's name: array as torch stores it}, sorted, of all parameters."""
    names, tensors = Names(model), {}
    for path, variable in (parameter_paths(model) | _fixed(model)).items():
        array = np.asarray(variable[...])
        own = ".".join(path)
        layers = names.layers(own)
        for number, (name, transposed) in enumerate(names.parameter(own)):
            row = array if layers is None else array[number]
            if transposed:
                row = _torch_layout(row, path, model)
            tensors[name] = np.ascontiguousarray(row)
    return dict(sorted(tensors.items()))


def _fixed(model: nnx.Module) -> dict[tuple, nnx.Variable]:
    """{path: array} of what a checkpoint holds beside parameters."""
    flat = nnx.to_flat_state(nnx.state(model, Fixed))
    return {tuple(map(str, path)): variable for path, variable in flat}


def _fields_of(model: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of config.json.

    They never say that a head with weights of its own is tied: a reader would drop the
    weights.
    """
    untied = hasattr(model, "lm_head") and bool(fields.get("tie_word_embeddings"))
    return {**fields, "tie_word_embeddings": False} if untied else dict(fields)


def _files_beside(base: str | os.PathLike[str]) -> list[Path]:
    """The files of a checkpoint that are copied, its tokenizer's among them."""
    place = Path(base).expanduser()
    place = place if place.is_dir() else locate(base).folder
    found = [place / name for name in BESIDE if (place / name).is_file()]
    if not any(path.name.startswith(TOKENIZERS) for path in found):
        there = sorted(path.name for path in place.iterdir())
        raise FileNotFoundError(
            f"{place} has no tokenizer to copy; found {there}; base=None writes none"
        )
    return found


def _torch_layout(kernel: np.ndarray, path: tuple[str, ...], model: Any) -> np.ndarray:
    """A kernel [in, out] as torch's [out, in], or as that of its convolution."""
    if path[-2] in ("conv1", "conv2"):  # of Whisper, three taps of each channel
        return kernel.T.reshape(kernel.shape[1], -1, 3)
    if not any(word.startswith("patch_embedding") for word in path):
        return kernel.T
    config = getattr(model.config, "vision_config", model.config)
    return kernel.T.reshape(
        -1, config.num_channels, config.patch_size, config.patch_size
    )
