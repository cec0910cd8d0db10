"""Reads and writes adapters in Hugging Face PEFT's folder format.

A folder has adapter_config.json and adapter_model.safetensors. PEFT's folders load
here, and folders written here load in `peft.PeftModel`, with equal outputs; PEFT itself
is not needed. PEFT only warns of missing tensors; here they are an error.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedjax_fm.models import torch_file
from fedjax_fm.peft.adapted import Adapted
from fedjax_fm.peft.atomic import whole_folder
from fedjax_fm.peft.dora import DoRALinear
from fedjax_fm.peft.method import apply
from fedjax_fm.peft.peft_method import AdapterError, check_fields, method_of, model_for
from fedjax_fm.peft.places import Place, of_pattern
from fedjax_fm.peft.state_dict import filled, named_arrays, trained_tensors
from fedjax_fm.peft.targets import dotted
from fedjax_fm.peft.tensors import AdapterTensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OLDER = "adapter_model.bin"  # of PEFT before 0.6, and of Trainer before 4.35
# {ending of the class of a model: PEFT's task type}
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "Model": "FEATURE_EXTRACTION",
}


def save_pretrained(
    folder: str | os.PathLike[str],
    graphdef: nnx.GraphDef,
    delta: Any,
    backbone: Any,
    *,
    base_model_name_or_path: str | None = None,
    task_type: str | None = None,
) -> None:
    """Writes the trained part of a model in PEFT's format.

    `peft.PeftModel.from_pretrained(base, folder)` opens it. The format holds LoRA (with
    rsLoRA, FFA-LoRA, shared A), DoRA, (IA)³, prompts and prefixes; a reparameterised
    prefix is collapsed first. Modules that are trained in full become
    `modules_to_save`. An embedding with a tied head is written with
    `ensure_weight_tying`.

    Args:
      folder: where it is written; it appears whole or not at all.
      graphdef: from `apply`.
      delta: the trained part, such as `state.delta`.
      backbone: from `apply`.
      base_model_name_or_path: where the base model came from; it is only noted.
      task_type: PEFT's. None: by the class of the model, for example CAUSAL_LM for
        `...ForCausalLM`.

    Raises:
      ValueError: the format cannot hold what is trained.

    Example:
      >>> import os, tempfile
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(q_proj=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     peft.save_pretrained(folder, *adapted)
      ...     sorted(os.listdir(folder))
      ['adapter_config.json', 'adapter_model.safetensors']
    """
    model = nnx.merge(graphdef, delta, backbone)
    tensors = trained_tensors(model, delta)
    name = type(model).__name__
    # PEFT's class for a task calls a model with tokens, which one of sound does not take.
    reads_tokens = not hasattr(model, "encoder_columns")
    if task_type is None and reads_tokens:
        known = (task for ending, task in _TASKS.items() if name.endswith(ending))
        task_type = next(known, None)
    if task_type is None and "prompt_embeddings" in tensors.views:
        # PEFT would open it without the prompt.
        raise ValueError(
            f"PEFT needs to know a {name}'s task to place a prompt: give task_type="
        )
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": base_model_name_or_path,
        "inference_mode": True,
        "modules_to_save": _modules_to_save(tensors) or None,
        "peft_type": tensors.kind,
        "revision": None,
        "task_type": task_type,
    }
    fields_of = {"LORA": _lora_config, "IA3": _ia3_config}
    config |= fields_of.get(tensors.kind, _virtual_config)(tensors)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    arrays = named_arrays(tensors)
    with whole_folder(folder) as new:
        (new / CONFIG).write_text(text, encoding="utf-8")
        save_file(arrays, new / TENSORS, metadata={"format": "pt"})


def _modules_to_save(tensors: AdapterTensors) -> list[str]:
    """The saved modules, with "lm_head" where PEFT would not see that it is tied."""
    endings = tensors.saved_endings()
    last_words = [ending.rpartition(".")[2] for ending in endings]
    if tensors.tied_head is None or "embed_tokens" in last_words:
        return endings
    return [*endings, "lm_head"]


def _lora_config(tensors: AdapterTensors) -> dict[str, Any]:
    """The fields of a LoraConfig."""
    layers = list(tensors.modules.values())
    kinds = {(x.use_rslora, x.dropout, isinstance(x, DoRALinear)) for x in layers}
    if len(kinds) > 1:
        raise ValueError(
            f"expected one dropout and kind of LoRA for all layers, got {sorted(kinds)}"
        )
    use_rslora, dropout, use_dora = kinds.pop()
    rank, ranks = _as_pattern(tensors, lambda layer: layer.lora_b.shape[-2])
    alpha, alphas = _as_pattern(tensors, lambda layer: _number(layer.alpha))
    targets, numbers = _targets(tensors)
    return {
        "alpha_pattern": alphas,
        "bias": "none",
        "ensure_weight_tying": tensors.tied_head is not None,
        "exclude_modules": None,
        "fan_in_fan_out": _fan_in_fan_out(tensors),
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": numbers,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "r": rank,
        "rank_pattern": ranks,
        "target_modules": targets,
        "trainable_token_indices": _token_indices(tensors),
        "use_dora": use_dora,
        "use_rslora": use_rslora,
    }


def _number(alpha: float) -> float:
    """An alpha that was computed from a scale, without the rounding of the scale."""
    alpha = round(alpha, 9)
    return int(alpha) if float(alpha).is_integer() else alpha


def _token_indices(tensors: AdapterTensors) -> dict[str, list[int]] | None:
    """{embedding: trained tokens}; None where there is none."""
    found = {
        tensors.names.module(path)[0]: list(module.ids)
        for path, module in tensors.tokens.items()
    }
    return found or None


def _targets(tensors: AdapterTensors) -> tuple[list[str], list[int] | None]:
    """(`target_modules`, `layers_to_transform`).

    Endings where all modules are adapted in the same layers, else the whole names of
    all layers.
    """
    names = tensors.names
    held: dict[str, set[int]] = defaultdict(set)
    for path in tensors.modules:
        held[names.plain(path)].update(names.layers(path) or ())
    numbers = {tuple(sorted(layers)) for layers in held.values()}
    everything = {layer for path in names.modules for layer in names.layers(path) or ()}
    alike = all(set(layers) in (set(), everything) for layers in numbers)
    if len(numbers) > 1 and not alike:
        whole = [name for path in tensors.modules for name in names.module(path)]
        return sorted(whole), None
    chosen = max(numbers, key=len)
    some = bool(chosen) and set(chosen) != everything
    return names.endings(tensors.modules), list(chosen) if some else None


def _as_pattern(
    tensors: AdapterTensors, value: Callable[[Any], Any]
) -> tuple[Any, dict[str, Any]]:
    """(the value of most layers, {ending of a name: value} for the others)."""
    names = tensors.names
    values = {
        Place(path=p, plain="", name=name, layer=None): value(module)
        for p, module in tensors.modules.items()
        for name in names.module(p)
    }
    counts = Counter(values.values())
    (usual, _), *_ = counts.most_common(1)
    others = {
        path: value(module)
        for path, module in tensors.modules.items()
        if value(module) != usual
    }
    short = {
        ending: own for path, own in others.items() for ending in names.endings([path])
    }
    whole = {f"^{place.name}": own for place, own in values.items() if own != usual}
    for pattern in (short, whole):
        ordered = dict(sorted(pattern.items()))
        again = {place: of_pattern(ordered, place, usual) for place in values}
        if again == values:
            return usual, ordered
    raise ValueError(
        f"the names of these layers do not tell them apart for PEFT: {sorted(others)}"
    )


def _ia3_config(tensors: AdapterTensors) -> dict[str, Any]:
    """The fields of an IA3Config."""
    targets, numbers = _targets(tensors)
    if numbers is not None or len(targets) > len(tensors.modules):
        raise ValueError("PEFT's (IA)³ acts in all layers; this one is on some only")
    return {
        "fan_in_fan_out": _fan_in_fan_out(tensors),
        "feedforward_modules": tensors.names.endings(
            p for p, m in tensors.modules.items() if m.on_input
        ),
        "init_ia3_weights": True,
        "target_modules": tensors.names.endings(tensors.modules),
    }


def _virtual_config(tensors: AdapterTensors) -> dict[str, Any]:
    """The fields of a PromptTuningConfig or a PrefixTuningConfig."""
    n_tokens, width = tensors.views["prompt_embeddings"].shape
    fields = getattr(tensors.model, "config", None)
    n_layers = getattr(fields, "num_hidden_layers", None)
    common = {"num_virtual_tokens": n_tokens, "num_transformer_submodules": 1}
    if tensors.kind == "PROMPT_TUNING":
        heads = getattr(fields, "num_attention_heads", None)
        own = {"prompt_tuning_init": "RANDOM", "token_dim": width}
        return {**common, **own, "num_attention_heads": heads, "num_layers": n_layers}
    first, *_ = tensors.modules.values()
    *_, heads, head_dim = first.keys.shape
    own = {
        "token_dim": heads * head_dim,
        "num_attention_heads": heads,
        "num_layers": width // (2 * heads * head_dim),
    }
    return {
        **common,
        **own,
        "encoder_hidden_size": heads * head_dim,
        "prefix_projection": False,
    }


def _fan_in_fan_out(tensors: AdapterTensors) -> bool:
    """Whether an adapted kernel is stored as [in, out], as GPT-2's are."""
    in_out = tensors.names.naming.in_out
    plain = [tensors.names.plain(path) for path in tensors.modules]
    return any(path.rpartition(".")[2] in in_out for path in plain)


def load_pretrained(folder: str | os.PathLike[str], model: nnx.Module) -> Adapted:
    """Adapts a model by a saved adapter, as `apply` with its method and its values.

    As in PEFT, a tied head gets weights of its own where the adapter trains the
    embedding or the head without the other; and base weights in the file (of a wrapped
    head, of embeddings) replace the model's.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors, from PEFT or from
        `save_pretrained`; or with adapter_model.bin, as older versions of PEFT wrote.
      model: the base model; it is not changed.

    Returns:
      The parts, which unpack into `graphdef, delta, backbone`.

    Raises:
      FileNotFoundError: the files are not there; the message lists the folder.
      AdapterError: tensors are missing, extra or of another shape (all are listed); or
        the method or an option is not supported.

    Example:
      >>> import tempfile
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(q_proj=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     adapted.save_pretrained(folder)
      ...     again = peft.load_pretrained(folder, model)
      >>> again.model().q_proj.lora_a.shape
      (4, 2)
    """
    config, found, path = _read(Path(folder))
    model = model_for(config, model)
    graphdef, delta, backbone = apply(model, method_of(config, model))
    adapted = nnx.merge(graphdef, delta, backbone)
    trained = {dotted(path) for path, _ in nnx.to_flat_state(delta)}
    return filled(adapted, trained, found, path)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], Path]:
    """(configuration, tensors, their file) of a folder; all options are supported."""
    path = folder / TENSORS
    if not path.is_file() and (folder / OLDER).is_file():
        path = folder / OLDER
    for needed in (folder / CONFIG, path):
        if not needed.is_file():
            there = "no such folder"
            if folder.is_dir():
                there = sorted(path.name for path in folder.iterdir())
            raise FileNotFoundError(f"{folder} has no {needed.name}; found {there}")
    config = _read_config(folder / CONFIG)
    check_fields(config)
    found = _read_tensors(path)
    _refuse_embedding_factors(config, found)
    config = _with_unnamed_heads(config, found)
    return _with_tied_head(config, found), found, path


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a file of safetensors, or of torch."""
    try:
        found = torch_file.load(path) if path.name == OLDER else load_file(path)
    except (SafetensorError, OSError, KeyError, torch_file.TorchFileError) as error:
        raise AdapterError(
            f"{path} cannot be read ({error}); save or fetch it again"
        ) from error
    arrays = isinstance(found, dict) and all(
        isinstance(x, np.ndarray) for x in found.values()
    )
    if not arrays:
        raise AdapterError(f"{path}: expected names and tensors, got {found!r:.60}")
    return found


def _read_config(path: Path) -> dict[str, Any]:
    """The object of a JSON file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: expected a JSON object, got {config!r:.60}")
    return config


def _refuse_embedding_factors(
    config: Mapping[str, Any], found: Mapping[str, np.ndarray]
) -> None:
    """Raises AdapterError for LoRA of an embedding."""
    factors = sorted(name for name in found if ".lora_embedding_" in name)
    if factors:
        raise AdapterError(
            f"target_modules={config.get('target_modules')} adapt an embedding "
            f"({factors[0]}), which is not supported; LoRA sits beside linear "
            "layers here"
        )


def _with_unnamed_heads(
    config: dict[str, Any], found: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The configuration with the heads of a prompt, which PEFT stores unnamed."""
    is_virtual = config["peft_type"] in ("PROMPT_TUNING", "PREFIX_TUNING")
    if not is_virtual or config.get("modules_to_save"):
        return config
    stored = [name for name in found if name.startswith("base_model.")]
    modules = {name.split(".")[-2] for name in stored}
    return {**config, "modules_to_save": sorted(modules)}


def _with_tied_head(
    config: dict[str, Any], found: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The configuration with the name of a tied head, which PEFT takes out."""
    saved = config.get("modules_to_save") or []
    is_stored = "base_model.model.lm_head.weight" in found
    if not config.get("ensure_weight_tying") or not saved or not is_stored:
        return config
    return {**config, "modules_to_save": [*saved, "lm_head"]}
