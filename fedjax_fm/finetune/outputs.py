"""What a run leaves behind: the adapter, the merged model, a model card."""

import contextlib
import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.engine import hosts
from fedjax_fm.finetune.data import Data
from fedjax_fm.finetune.expressions import names_in
from fedjax_fm.finetune.methods import has_two_adapters
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.models.gguf_file import GGUFFile
from fedjax_fm.models.gguf_writer import save_gguf
from fedjax_fm.models.locate import locate, provenance
from fedjax_fm.models.weights import read_config
from fedjax_fm.peft.atomic import whole_folder
from fedjax_fm.peft.targets import Wrapper, named_modules
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.runs.processes import first_does, is_first
from fedjax_fm.study.run import Run, Simulated
from fedjax_fm.types import Tree

DELTA = "delta.npz"
ADAPTER, MERGED = "adapter", "merged"
CARD = "README.md"


def save(run: Run, found: Simulated, place: Path) -> None:
    """Saves the trained model of a seed; that of the first seed under plain names.

    Args:
      run: of the seed.
      found: its simulation.
      place: the run's folder.
    """
    settings, data = run.config, run.data
    folder = RunFolder(place).below(folder_of(settings, run.seed))
    delta, backbone = found.model()
    if has_two_adapters(settings):
        delta = found.state.delta  # the shared one
    # Of several processes all have the arrays, and the first writes the files.
    delta, backbone = hosts.here((delta, backbone))
    folder.write_arrays(DELTA, flat(delta))
    changed = has_changed(data.adapted.backbone, backbone)
    if found.simulator.is_personal and not changed:
        _save_personal(folder, found)
    parts = (delta, backbone)
    first_does(functools.partial(_save_shared, folder, settings, data, parts, changed))


def folder_of(settings: Settings, seed: int) -> str:
    """The name of the folder of a seed's model.

    Args:
      settings: have the seeds, the first of which has the plain name.
      seed: one of them.
    """
    return "model" if seed == settings.seeds[0] else f"model-seed-{seed}"


def _save_shared(
    folder: RunFolder,
    settings: Settings,
    data: Data,
    parts: tuple[Tree, Tree],
    changed: bool,
) -> None:
    """The adapter, if the frozen weights are what they were, and the merged model."""
    kept, why = False, "the method changes frozen weights"
    if not changed:
        kept, why = _save_adapter(folder, settings, data, parts[0])
    merge = settings.merge
    if changed and not merge:
        # There is no other way to keep what was trained.
        is_gguf = locate(settings.model).weights.suffix == ".gguf"
        merge = ("gguf",) if is_gguf else ("safetensors",)
    written = _save_merged(folder, settings, data, parts, merge)
    saved = {
        "adapter": kept,
        "why_not": "" if kept else why,
        "merged": written,
        "changes_weights": changed,
    }
    folder.write_json("saved.json", saved)


def _save_adapter(
    folder: RunFolder, settings: Settings, data: Data, delta: Tree
) -> tuple[bool, str]:
    """(whether PEFT's format holds the adapter, why not)."""
    try:
        data.adapted.save_pretrained(
            folder.path / ADAPTER, delta, base_model_name_or_path=settings.model
        )
    except ValueError as error:
        return False, " ".join(str(error).split())
    classes, files = data.prepared.examples.classes, locate(settings.model)
    if classes and files.weights.suffix != ".gguf":
        # PEFT's own file has no place for names; of the base model it fits they are.
        fields = read_config(files.folder) | labels_of(classes)
        RunFolder(folder.path / ADAPTER).write_json("config.json", fields)
    return True, ""


def _save_merged(
    folder: RunFolder,
    settings: Settings,
    data: Data,
    parts: tuple[Tree, Tree],
    kinds: tuple[str, ...],
) -> list[str]:
    """Writes the merged model in each of these formats."""
    written = []
    for kind in kinds:
        model = peft.merge(data.adapted.model(*parts))
        if kind == "gguf":
            files = locate(settings.model)
            save_gguf(folder.path / "merged.gguf", model, like=files.weights)
            written.append("merged.gguf")
            continue
        save_whole(folder.path / MERGED, model, settings, data)
        written.append(MERGED)
    return written


def save_whole(place: Path, model: Any, settings: Settings, data: Data) -> None:
    """Writes a model as a Hugging Face folder, its tokenizer beside it.

    Args:
      place: of the new folder.
      model: merged.
      settings: have the base model.
      data: has the classes and the chat.
    """
    files = locate(settings.model)
    classes = data.prepared.examples.classes
    if files.weights.suffix != ".gguf":
        fields = dict(read_config(files.folder))
        fields |= labels_of(classes) if classes else {}
        if classes:
            fields["architectures"] = [type(model).__name__]
        peft.save_merged(place, model, fields, base=settings.model)
        return
    config = dataclasses.asdict(model.config)
    fields = {"model_type": "llama", "architectures": [type(model).__name__], **config}
    peft.save_merged(place, model, fields)
    chat = models.load_chat(settings.model)
    chat.tokenizer.save(str(place / "tokenizer.json"))
    words = {name: word for name, word in chat.variables.items() if word is not None}
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": chat.template,
        **words,
    }
    text = json.dumps(described, indent=2) + "\n"
    (place / "tokenizer_config.json").write_text(text, encoding="utf-8")


def check_merge(settings: Settings, data: Data) -> None:
    """Raises UsageError where a merged model cannot be written as is asked.

    Args:
      settings: of the run.
      data: has the adapted model.
    """
    changes = names_in(settings.method)[0] in ("flora", "fedex_lora")
    if changes and settings.frozen != "dense":
        raise UsageError(
            f"{settings.method} changes frozen weights: leave out --frozen"
        )
    if (settings.merge or changes) and (odd := _unmergeable(data.adapted.model())):
        raise UsageError(
            f"--peft {settings.peft} cannot be merged: {odd[0]} has no place in a "
            "model's own files; leave out --merge"
        )
    files = locate(settings.model)
    is_gguf = files.weights.suffix == ".gguf"
    if "gguf" in settings.merge and not is_gguf:
        raise UsageError(
            f"--merge gguf takes the tokenizer of a .gguf file, and {settings.model} is "
            "none; give --merge safetensors, and convert that with llama.cpp"
        )
    if settings.merge and settings.frozen != "dense":
        raise UsageError("--merge needs dense weights: leave out --frozen")
    if "safetensors" not in settings.merge or not is_gguf:
        return
    opened = GGUFFile(files.weights)
    fields = dataclasses.asdict(opened.config())
    odd = [name for name, value in fields.items() if not _is_plain(value)]
    if opened.architecture != "llama" or odd:
        raise UsageError(
            f"{files.weights.name} ({opened.architecture}) has a configuration that no "
            "config.json is written of here; give --merge gguf"
        )


def _unmergeable(model: nnx.Module) -> list[str]:
    """Paths of the modules that `peft.merge` leaves as they are."""
    return [
        path
        for path, module in named_modules(model)
        if path.rpartition(".")[2] in ("prompt", "prefix")
        or (isinstance(module, Wrapper) and module.fold is None)
    ]


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str, bool, type(None)))


def labels_of(classes: tuple[str, ...]) -> dict[str, Any]:
    """The fields of config.json that name classes.

    Args:
      classes: in the order of their numbers.

    Example:
      >>> labels_of(("no", "yes"))["id2label"]
      {'0': 'no', '1': 'yes'}
    """
    numbered = list(enumerate(classes))
    return {
        "num_labels": len(classes),
        "id2label": {str(number): name for number, name in numbered},
        "label2id": {name: number for number, name in numbered},
    }


def _save_personal(folder: RunFolder, found: Simulated) -> None:
    """The adapter of each client that trained, in clients/NUMBER."""
    place = folder.path / "clients"
    writes = is_first()  # the others have parts of the clients' states
    with whole_folder(place) if writes else contextlib.nullcontext() as new:
        for k in range(found.simulator.population.n_clients):
            delta, _ = hosts.here(found.model(k))
            if new is not None:
                np.savez_compressed(new / f"{k}.npz", **flat(delta))  # type: ignore[arg-type]


def has_changed(before: Tree, after: Tree) -> bool:
    """Whether a frozen tree is not what it was.

    Args:
      before: of the adapted model.
      after: of the simulation.
    """
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(
        one is not other and not np.array_equal(np.asarray(one), np.asarray(other))
        for one, other in pairs
    )


def flat(tree: Tree) -> dict[str, np.ndarray]:
    """{path: array} of a tree; bf16 as f32, which NumPy can store.

    Args:
      tree: of arrays.
    """
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        if array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        found[jax.tree_util.keystr(path)] = array
    return found


def restored(tree: Tree, arrays: dict[str, np.ndarray], where: Path) -> Tree:
    """A tree with the values of a file.

    Args:
      tree: of the same structure.
      arrays: from `flat`.
      where: the file, for the message.

    Returns:
      The tree, leaves in its own dtypes.

    Raises:
      UsageError: the file is of another model or another method.
    """
    leaves, structure = jax.tree.flatten_with_path(tree)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    if set(names) != set(arrays):
        odd = sorted(set(names) ^ set(arrays))[0]
        raise UsageError(
            f"{where} does not fit the model: {odd} is in only one of both"
        )
    found = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if arrays[name].shape != np.shape(leaf):
            raise UsageError(
                f"{where}: {name} has shape {arrays[name].shape}, the model's is "
                f"{np.shape(leaf)}"
            )
        found.append(jax.numpy.asarray(arrays[name], leaf.dtype))
    return structure.unflatten(found)


def write_card(folder: RunFolder, settings: Settings, facts: dict[str, Any]) -> None:
    """Writes README.md beside the adapter: what it was trained on, how, and how well.

    Args:
      folder: of the run.
      settings: of the run.
      facts: lines for the card, {what: text}.
    """
    head = {
        "base_model": _public(settings.model),
        "library_name": "peft",
        "tags": ["federated-learning", "fedjax_fm", settings.peft.split("(")[0]],
    }
    lines = ["---", *_front_matter(head), "---", "", "# A federated adapter", ""]
    lines += [f"- {name}: {text}" for name, text in facts.items()]
    text = "\n".join(lines) + "\n"
    place = folder.path / "model" / ADAPTER
    where = RunFolder(place if place.is_dir() else folder.path / "model")
    where.write_text(CARD, text)


def _public(model: str) -> str:
    """A hub id as it is, of a path the name alone."""
    is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) and not Path(model).exists()
    return model if is_hub_id else Path(model).name


def _front_matter(fields: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in fields.items():
        if isinstance(value, list):
            lines += [f"{name}:", *(f"- {json.dumps(one)}" for one in value)]
        else:
            lines.append(f"{name}: {json.dumps(value)}")
    return lines


def sources(settings: Settings, data_sha256: str) -> dict[str, str]:
    """Where weights and data come from.

    Args:
      settings: of the run.
      data_sha256: of the bytes that were read.

    Returns:
      Lines for provenance.json and the card.
    """
    weights = provenance(settings.model)
    return {
        "model": _public(settings.model),
        "model_sha256": weights["sha256"],
        "data": Path(settings.data).name,
        "data_sha256": data_sha256,
    }
