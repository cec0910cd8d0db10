"""Adapters in Hugging Face PEFT's folder format: adapter_config.json and adapter_model.safetensors.

Written and read without PEFT; its own files load here and ours load in `peft.PeftModel`, with equal outputs. PEFT loads
leniently (missing tensors only warn); this is strict.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from fedjax_fm.peft.dora import DoRALinear, dora
from fedjax_fm.peft.ia3 import ia3
from fedjax_fm.peft.layers import on_layers
from fedjax_fm.peft.linear import LinearLayer
from fedjax_fm.peft.lora import lora
from fedjax_fm.peft.method import Method, apply
from fedjax_fm.peft.names import Names
from fedjax_fm.peft.prefix import collapse, prefix_tuning
from fedjax_fm.peft.prompt import prompt_tuning
from fedjax_fm.peft.targets import matches, named_modules
from fedjax_fm.peft.tensors import AdapterTensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "Model": "FEATURE_EXTRACTION",
}
# What would change the outputs and is not done here: {field: values that say no}.
_REFUSED: dict[str, tuple] = {
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "bias": (None, "none"),
    "exclude_modules": (None, []),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "megatron_config": (None,),
    "lora_bias": (None, False),
    "use_qalora": (None, False),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
}


class AdapterError(ValueError):
    """An adapter's folder does not fit the model."""


def save_pretrained(
    folder: str | os.PathLike[str],
    graphdef: nnx.GraphDef,
    delta: Any,
    backbone: Any,
    *,
    base_model_name_or_path: str | None = None,
    task_type: str | None = None,
) -> None:
    """Writes the trained part of a model, so that `peft.PeftModel.from_pretrained(base, folder)` opens it.

    Args:
      graphdef, delta, backbone: from `apply`; `delta` as trained, such as `state.delta`.
      base_model_name_or_path: where the base model came from; only noted.
      task_type: PEFT's; by default from the class (`...ForCausalLM`: CAUSAL_LM, and so on).

    LoRA (rsLoRA, FFA, shared A), DoRA, (IA)³, prompts and prefixes; a reparameterised prefix is collapsed first. Modules
    trained in full go along as `modules_to_save`.

    Raises:
      ValueError: what is trained has no place in the format.
    """
    model = collapse(nnx.merge(graphdef, delta, backbone))
    trained = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(delta)}
    trained = {path for path in trained if ".prefix." not in path} | {
        f"{path}.{leaf}"
        for path, module in named_modules(model)
        if path.endswith(".prefix")
        for leaf in ("keys", "values")
        if hasattr(module, leaf)
    }
    tensors = AdapterTensors(model, trained)
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": base_model_name_or_path,
        "inference_mode": True,
        "modules_to_save": tensors.names.endings(tensors.saved) or None,
        "peft_type": tensors.kind,
        "revision": None,
        "task_type": task_type or next((t for end, t in _TASKS.items() if type(model).__name__.endswith(end)), None),
    }
    if config["task_type"] is None and "prompt_embeddings" in tensors.views:  # PEFT would open it without the prompt
        raise ValueError(f"PEFT needs to know a {type(model).__name__}'s task to place a prompt: give task_type=")
    config |= {"LORA": _lora_config, "IA3": _ia3_config}.get(tensors.kind, _virtual_config)(tensors)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    arrays = {name: np.ascontiguousarray(view) for name, view in sorted(tensors.views.items())}
    save_file(arrays, folder / TENSORS, metadata={"format": "pt"})


def _lora_config(tensors: AdapterTensors) -> dict[str, Any]:
    layers = list(tensors.modules.values())
    kinds = {(x.lora_b.shape[-2], x.alpha, x.use_rslora, x.dropout, isinstance(x, DoRALinear)) for x in layers}
    if len(kinds) > 1:
        raise ValueError(f"expected one rank, alpha and kind of LoRA for all layers, got {sorted(kinds)}")
    rank, alpha, use_rslora, dropout, use_dora = kinds.pop()
    return {
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": _fan_in_fan_out(tensors),
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": _some_layers(tensors),
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": dropout,
        "r": rank,
        "rank_pattern": {},
        "target_modules": tensors.names.endings(tensors.modules),
        "use_dora": use_dora,
        "use_rslora": use_rslora,
    }


def _ia3_config(tensors: AdapterTensors) -> dict[str, Any]:
    if _some_layers(tensors) is not None:
        raise ValueError("PEFT's (IA)³ acts in all layers; this one is on some only")
    return {
        "fan_in_fan_out": _fan_in_fan_out(tensors),
        "feedforward_modules": tensors.names.endings(p for p, m in tensors.modules.items() if m.on_input),
        "init_ia3_weights": True,
        "target_modules": tensors.names.endings(tensors.modules),
    }


def _virtual_config(tensors: AdapterTensors) -> dict[str, Any]:
    n_tokens, width = tensors.views["prompt_embeddings"].shape
    fields = getattr(tensors.model, "config", None)
    n_layers = getattr(fields, "num_hidden_layers", None)
    common = {"num_virtual_tokens": n_tokens, "num_transformer_submodules": 1}
    if tensors.kind == "PROMPT_TUNING":
        heads = getattr(fields, "num_attention_heads", None)
        own = {"prompt_tuning_init": "RANDOM", "token_dim": width}
        return {**common, **own, "num_attention_heads": heads, "num_layers": n_layers}
    *_, heads, head_dim = next(iter(tensors.modules.values())).keys.shape
    own = {"token_dim": heads * head_dim, "num_attention_heads": heads, "num_layers": width // (2 * heads * head_dim)}
    return {**common, **own, "encoder_hidden_size": heads * head_dim, "prefix_projection": False}


def _fan_in_fan_out(tensors: AdapterTensors) -> bool:
    in_out = tensors.names.naming.in_out
    return any(tensors.names.plain(path).rpartition(".")[2] in in_out for path in tensors.modules)


def _some_layers(tensors: AdapterTensors) -> list[int] | None:
    """The numbers of the adapted layers, None for all of a stack."""
    held: dict[str, set[int]] = {}
    for path in tensors.modules:
        layers = tensors.names.layers(path)
        held.setdefault(tensors.names.plain(path), set()).update(layers if layers is not None else ())
    numbers = {tuple(sorted(layers)) for layers in held.values()}
    if len(numbers) > 1:
        raise ValueError(f"PEFT's format adapts the same layers everywhere, got {sorted(numbers)}")
    chosen = list(numbers.pop())
    everything = {layer for path in tensors.names.modules for layer in tensors.names.layers(path) or ()}
    return None if not chosen or set(chosen) == everything else chosen


def load_pretrained(folder: str | os.PathLike[str], model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """`apply` for a saved adapter: (graphdef, delta, backbone) of `model` with its values.

    Raises:
      FileNotFoundError: no such files; lists the folder.
      AdapterError: missing, extra or differently shaped tensors, all listed; a method or an option that is not
        supported.
    """
    folder = Path(folder)
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"{folder} has no {name}; found {there}")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    found = load_file(folder / TENSORS)
    graphdef, delta, backbone = apply(model, _method(config, model, found))
    adapted = nnx.merge(graphdef, delta, backbone)
    trained = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(delta)}
    tensors = AdapterTensors(adapted, trained)
    _check(folder / TENSORS, tensors.views, found)
    for name, view in tensors.views.items():
        view[...] = found[name]
    tensors.finish()
    paths = {tuple(path.split(".")) for path in trained}
    graphdef, delta, backbone = nnx.split(adapted, lambda path, _: tuple(map(str, path)) in paths, ...)
    return graphdef, delta, backbone


def _check(path: Path, wanted: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    problems = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"extra {name}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name}: expected shape {list(wanted[name].shape)}, got {list(found[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:12]) + (f"; and {len(problems) - 12} more" if len(problems) > 12 else "")
        raise AdapterError(f"{path} does not fit the model and its {CONFIG}: {shown}")


def _method(config: dict[str, Any], model: nnx.Module, found: dict[str, np.ndarray]) -> Method:
    """The method that a config describes."""
    refused = {field: config[field] for field, no in _REFUSED.items() if field in config and config[field] not in no}
    if refused:
        raise AdapterError(f"these options of {CONFIG} are not supported: {refused}")
    kind, saved = config.get("peft_type"), tuple(config.get("modules_to_save") or ())
    if kind == "LORA":
        return _lora_method(config, model, saved)
    if kind == "IA3":
        feedforward = config.get("feedforward_modules") or None
        inner = None if feedforward is None else _peft_targets(feedforward, model)
        return ia3(_peft_targets(config["target_modules"], model), inner, modules_to_save=saved)
    # Classifiers' heads go along with prompts without being named in the config.
    saved = saved or tuple({name.split(".")[-2] for name in found if name.startswith("base_model.")})
    if kind == "PROMPT_TUNING":
        return prompt_tuning(config["num_virtual_tokens"], modules_to_save=saved)
    if kind == "PREFIX_TUNING":
        return prefix_tuning(config["num_virtual_tokens"], modules_to_save=saved)
    raise AdapterError(f"peft_type {kind!r} is not supported; expected LORA, IA3, PROMPT_TUNING or PREFIX_TUNING")


def _lora_method(config: dict[str, Any], model: nnx.Module, saved: tuple[str, ...]) -> Method:
    make = dora if config.get("use_dora") else lora
    some = config.get("layers_to_transform")
    method = make(
        config.get("r", 8),
        config.get("lora_alpha", 8),
        targets=_peft_targets(config["target_modules"], model),
        use_rslora=config.get("use_rslora", False),
        dropout=config.get("lora_dropout", 0.0),
        modules_to_save=() if some is not None else saved,
    )
    if some is None:
        return method
    return on_layers(method, [some] if isinstance(some, int) else some, modules_to_save=saved)


def _peft_targets(targets: str | list[str], model: nnx.Module) -> Callable[[str], bool]:
    """PEFT's patterns see Hugging Face's names with layer numbers: a string must match the whole name."""
    hit = (lambda name: re.fullmatch(targets, name) is not None) if isinstance(targets, str) else None
    hit = hit or (lambda name: matches(name, targets))
    names, chosen = Names(model), {}
    for path, module in named_modules(model):
        if isinstance(module, LinearLayer):
            stack, _ = names.layers_of(path)
            hits = [hit(name) for name in names.module(path)]
            if any(hits) and not all(hits):
                raise AdapterError(
                    f"target_modules={targets!r} name some layers of {path} only; use layers_to_transform"
                )
            chosen[path] = any(hits)
            if stack:
                chosen[path.removeprefix(f"{stack}.")] = any(hits)
    return lambda path: chosen.get(path, False)
