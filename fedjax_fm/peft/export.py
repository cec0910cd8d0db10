"""Whole models as Hugging Face folders: config.json and model.safetensors under Hugging Face's names."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from fedjax_fm.models.quantized import Frozen
from fedjax_fm.peft.merge import merge
from fedjax_fm.peft.method import parameter_paths
from fedjax_fm.peft.names import Names
from fedjax_fm.peft.targets import Wrapper, named_modules


def save_merged(folder: str | os.PathLike[str], model: nnx.Module, fields: Mapping[str, Any]) -> None:
    """Writes a model with its LoRA, DoRA and (IA)³ merged into the weights, for transformers or `from_pretrained`.

    Args:
      model: one of ours, adapted (`nnx.merge(graphdef, state.delta, backbone)`) or plain.
      fields: of config.json, such as those of the checkpoint that it came from; written as they are.

    Raises:
      ValueError: quantised weights (`models.dequantize` them first); a method whose parameters have no place in such a
        file (adapters, prompts, prefixes), or a model that does not say how Hugging Face names it.
    """
    if not hasattr(model, "hugging_face"):
        raise ValueError(f"{type(model).__name__} has no counterpart at Hugging Face")
    if jax.tree.leaves(nnx.state(model, Frozen)):
        raise ValueError(
            "a Hugging Face folder holds dense weights, but this model's are quantised; dequantize it first"
        )
    model = merge(model)
    virtual = {
        p for p, m in named_modules(model) if p.rpartition(".")[2] in ("prompt", "prefix") or isinstance(m, Wrapper)
    }
    if virtual:
        raise ValueError(f"these have no place in a model's own files: {sorted(virtual)}; save the adapter instead")
    names, tensors = Names(model), {}
    for path, variable in parameter_paths(model).items():
        array, layers = np.asarray(variable[...]), names.layers(".".join(path))
        for number, (name, transposed) in enumerate(names.parameter(".".join(path))):
            row = array if layers is None else array[number]
            tensors[name] = np.ascontiguousarray(_torch_layout(row, path, model) if transposed else row)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(fields), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(dict(sorted(tensors.items())), folder / "model.safetensors", metadata={"format": "pt"})


def _torch_layout(kernel: np.ndarray, path: tuple[str, ...], model: Any) -> np.ndarray:
    """[in, out] as torch's [out, in], or as the convolution over patches that it is there."""
    if not any(word.startswith("patch_embedding") for word in path):
        return kernel.T
    config = getattr(model.config, "vision_config", model.config)
    return kernel.T.reshape(-1, config.num_channels, config.patch_size, config.patch_size)
