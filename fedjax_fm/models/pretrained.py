"""The front door to pretrained models."""

import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.families import from_config, naming_of
from fedjax_fm.models.gguf_file import GGUFFile
from fedjax_fm.models.locate import locate
from fedjax_fm.models.low_bits import FORMATS, quantize
from fedjax_fm.models.weights import WeightError, load_into, read_config, tensor_names, weight_files


def from_pretrained(
    folder_or_hub_id: str | os.PathLike[str],
    *,
    num_labels: int | None = None,
    pooling: str = "cls",
    seed: int = 0,
    dtype: str = "float32",
    frozen: str = "dense",
) -> nnx.Module:
    """A pretrained model, its architecture read from config.json; see `from_config` for what there is.

    Args:
      folder_or_hub_id: a folder with config.json and model.safetensors (or its shards and their index), a .gguf file,
        or OWNER/NAME; see `locate`.
      num_labels: adds the architecture's classification head with that many outputs; None gives the bare encoder, or
        the language model with its own head.
      pooling: what the head of a BERT reads, "cls" or "mean" over tokens.
      seed: names the head's random initial values, where the checkpoint has none.
      dtype: "float32" or "bfloat16", of weights and activations; classification heads stay f32.
      frozen: "dense"; "int8", "nf4" or "nf4_double" for the matrices of the layers in blocks of so few bits, see
        `quantize`; "q4_1" to keep the 4-bit blocks of a .gguf file as they are. The dense weights are read first.

    Raises:
      FileNotFoundError, WeightError: say what is missing or does not match.
      ValueError: an argument that this kind of model does not take.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"expected dtype 'float32' or 'bfloat16', got {dtype!r}")
    if frozen not in ("dense", "q4_1", *FORMATS):
        known = ", ".join(map(repr, ("dense", "q4_1", *FORMATS)))
        raise ValueError(f"expected frozen {known}, got {frozen!r}")
    if frozen in FORMATS:
        dense = from_pretrained(folder_or_hub_id, num_labels=num_labels, pooling=pooling, seed=seed, dtype=dtype)
        return quantize(dense, frozen)
    files = locate(folder_or_hub_id)
    if files.weights.suffix == ".gguf":
        if num_labels is not None:
            raise ValueError(f"expected num_labels=None for a .gguf file, got {num_labels}: it has no classifier")
        return GGUFFile(files.weights).model(jnp.dtype(dtype), frozen)
    folder = files.folder
    fields = read_config(folder)
    if frozen != "dense":
        raise ValueError(f"frozen={frozen!r} keeps the blocks of a .gguf file, but {folder} holds safetensors")
    if num_labels is not None and num_labels < 1:
        raise ValueError(f"expected num_labels >= 1, got {num_labels}")
    weight_files(folder)  # missing files are said before anything else
    if fields.get("model_type") == "t5":
        fields = _t5_head(fields, tensor_names(folder))
    try:
        abstract = nnx.eval_shape(lambda: from_config(fields, num_labels=num_labels, pooling=pooling, dtype=dtype))
    except (TypeError, ValueError) as error:
        raise WeightError(f"{folder / 'config.json'}: {error}") from error
    return load_into(abstract, folder, naming_of(abstract), jax.random.key(seed))


def _t5_head(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """T5 v1.1 has a head of its own and leaves the decoder's output as it is; files have said so in two ways."""
    scaled = fields.get("scale_decoder_outputs", fields.get("tie_word_embeddings", True) is not False)
    return {**fields, "scale_decoder_outputs": scaled, "tie_word_embeddings": scaled or "lm_head.weight" not in names}
