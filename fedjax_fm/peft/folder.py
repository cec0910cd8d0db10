"""Adapters in Hugging Face PEFT's folder format: adapter_config.json and adapter_model.safetensors.

Written and read without PEFT; its own files load here and ours load in
`peft.PeftModel`, with equal outputs. PEFT loads leniently (missing tensors only warn);
this is strict.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from fedjax_fm.peft.adapted import Adapted
from fedjax_fm.peft.atomic import whole_folder
from fedjax_fm.peft.dora import DoRALinear
from fedjax_fm.peft.method import apply
from fedjax_fm.peft.peft_method import AdapterError, check_fields, method_of, model_for
from fedjax_fm.peft.places import Place, of_pattern
from fedjax_fm.peft.prefix import collapse
from fedjax_fm.peft.targets import named_modules
from fedjax_fm.peft.tensors import AdapterTensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
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
    """Writes the trained part of a model, so that `peft.PeftModel.from_pretrained(base,
    folder)` opens it.

    Args:
      graphdef, delta, backbone: from `apply`; `delta` as trained, such as `state.delta`.
      base_model_name_or_path: where the base model came from; only noted.
      task_type: PEFT's; by default from the class (`...ForCausalLM`: CAUSAL_LM, and so on).

    LoRA (rsLoRA, FFA, shared A), DoRA, (IA)³, prompts and prefixes; a reparameterised
    prefix is collapsed first. Modules trained in full go along as `modules_to_save`; an
    embedding that a head is tied to with `ensure_weight_tying`. The folder appears
    whole or not at all.

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
        "modules_to_save": _modules_to_save(tensors) or None,
        "peft_type": tensors.kind,
        "revision": None,
        "task_type": task_type
        or next(
            (t for end, t in _TASKS.items() if type(model).__name__.endswith(end)), None
        ),
    }
    if (
        config["task_type"] is None and "prompt_embeddings" in tensors.views
    ):  # PEFT would open it without the prompt
        raise ValueError(
            f"PEFT needs to know a {type(model).__name__}'s task to place a prompt: give task_type="
        )
    config |= {"LORA": _lora_config, "IA3": _ia3_config}.get(
        tensors.kind, _virtual_config
    )(tensors)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    arrays = {
        name: np.ascontiguousarray(view) for name, view in sorted(tensors.views.items())
    }
    with whole_folder(folder) as new:
        (new / CONFIG).write_text(text, encoding="utf-8")
        save_file(arrays, new / TENSORS, metadata={"format": "pt"})


def _modules_to_save(tensors: AdapterTensors) -> list[str]:
    """The saved modules; the name of a tied head beside an embedding's by which PEFT
    would not know that it is tied.
    """
    endings = tensors.saved_endings()
    if tensors.tied_head is None or any(
        ending.rpartition(".")[2] == "embed_tokens" for ending in endings
    ):
        return endings
    return [*endings, "lm_head"]


def _lora_config(tensors: AdapterTensors) -> dict[str, Any]:
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
    """An alpha that was computed from a scale, without the rounding of that.

    A whole number as one.
    """
    alpha = round(alpha, 9)
    return int(alpha) if float(alpha).is_integer() else alpha


def _token_indices(tensors: AdapterTensors) -> dict[str, list[int]] | None:
    found = {
        tensors.names.module(path)[0]: list(module.ids)
        for path, module in tensors.tokens.items()
    }
    return found or None


def _targets(tensors: AdapterTensors) -> tuple[list[str], list[int] | None]:
    """(`target_modules`, `layers_to_transform`).

    Endings where all modules are adapted in the same layers, else the whole names of
    the layers one by one.
    """
    held: dict[str, set[int]] = {}
    for path in tensors.modules:
        held.setdefault(tensors.names.plain(path), set()).update(
            tensors.names.layers(path) or ()
        )
    numbers = {tuple(sorted(layers)) for layers in held.values()}
    everything = {
        layer
        for path in tensors.names.modules
        for layer in tensors.names.layers(path) or ()
    }
    if len(numbers) > 1 and not all(
        set(layers) in (set(), everything) for layers in numbers
    ):
        return sorted(
            name for path in tensors.modules for name in tensors.names.module(path)
        ), None
    chosen = max(numbers, key=len)
    some = bool(chosen) and set(chosen) != everything
    return tensors.names.endings(tensors.modules), list(chosen) if some else None


def _as_pattern(
    tensors: AdapterTensors, value: Callable[[Any], Any]
) -> tuple[Any, dict[str, Any]]:
    """(the value of most layers, {ending of a name.

    Value} of the others), as PEFT's patterns find them again.
    """
    names = tensors.names
    values = {
        Place(path=p, plain="", name=name, layer=None): value(module)
        for p, module in tensors.modules.items()
        for name in names.module(p)
    }
    (usual, _), *_ = Counter(values.values()).most_common(1)
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
        if all(
            of_pattern(ordered, place, usual) == own for place, own in values.items()
        ):
            return usual, ordered
    raise ValueError(
        f"the names of these layers do not tell them apart for PEFT: {sorted(others)}"
    )


def _ia3_config(tensors: AdapterTensors) -> dict[str, Any]:
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
    n_tokens, width = tensors.views["prompt_embeddings"].shape
    fields = getattr(tensors.model, "config", None)
    n_layers = getattr(fields, "num_hidden_layers", None)
    common = {"num_virtual_tokens": n_tokens, "num_transformer_submodules": 1}
    if tensors.kind == "PROMPT_TUNING":
        heads = getattr(fields, "num_attention_heads", None)
        own = {"prompt_tuning_init": "RANDOM", "token_dim": width}
        return {**common, **own, "num_attention_heads": heads, "num_layers": n_layers}
    *_, heads, head_dim = next(iter(tensors.modules.values())).keys.shape
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
    in_out = tensors.names.naming.in_out
    return any(
        tensors.names.plain(path).rpartition(".")[2] in in_out
        for path in tensors.modules
    )


def load_pretrained(folder: str | os.PathLike[str], model: nnx.Module) -> Adapted:
    """`apply` for a saved adapter: the parts of `model` with its values.

    Where PEFT trains the embedding or the head of a tied model without the other, the
    head gets weights of its own, as there. Base weights that PEFT has stored (of a
    wrapped head, of embeddings) replace the model's, as there.

    Raises:
      FileNotFoundError: no such files; lists the folder.
      AdapterError: missing, extra or differently shaped tensors, all listed; a method
        or an option that is not supported.
    """
    config, found = _read(Path(folder))
    model = model_for(config, model)
    graphdef, delta, backbone = apply(model, method_of(config, model))
    adapted = nnx.merge(graphdef, delta, backbone)
    trained = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(delta)}
    tensors = AdapterTensors(adapted, trained)
    _fill(tensors, found, Path(folder) / TENSORS)
    paths = {tuple(path.split(".")) for path in trained}
    graphdef, delta, backbone = nnx.split(
        adapted, lambda path, _: tuple(map(str, path)) in paths, ...
    )
    return Adapted(graphdef=graphdef, delta=delta, backbone=backbone)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(configuration, tensors) of a folder, whose options are all supported."""
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            there = (
                sorted(path.name for path in folder.iterdir())
                if folder.is_dir()
                else "no such folder"
            )
            raise FileNotFoundError(f"{folder} has no {name}; found {there}")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    found = load_file(folder / TENSORS)
    check_fields(config)
    _refuse_embedding_factors(config, found)
    return _with_tied_head(_with_unnamed_heads(config, found), found), found


def _fill(tensors: AdapterTensors, found: Mapping[str, np.ndarray], path: Path) -> None:
    """Puts the tensors of a file into the model."""
    # PEFT may store base weights, too; a tied head's is there with some of its settings
    # and not with others.
    wanted = tensors.views | tensors.base_views(found.keys() - tensors.views.keys())
    if tensors.tied_head is not None:
        _check_tied(path, tensors, found)
        wanted = {
            name: view
            for name, view in wanted.items()
            if name in found or not name.endswith(".lm_head.weight")
        }
    _check(path, wanted, found)
    for name, view in wanted.items():
        view[...] = found[name]
    tensors.finish()


def _refuse_embedding_factors(
    config: Mapping[str, Any], found: Mapping[str, np.ndarray]
) -> None:
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
    """The configuration with the heads that go along with prompts without being named in it."""
    if config["peft_type"] not in ("PROMPT_TUNING", "PREFIX_TUNING") or config.get(
        "modules_to_save"
    ):
        return config
    modules = sorted(
        {name.split(".")[-2] for name in found if name.startswith("base_model.")}
    )
    return {**config, "modules_to_save": modules}


def _with_tied_head(
    config: dict[str, Any], found: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The configuration with a tied head named beside its embedding.

    PEFT takes the name out and stores the weights.
    """
    saved = config.get("modules_to_save") or []
    if (
        not config.get("ensure_weight_tying")
        or not saved
        or "base_model.model.lm_head.weight" not in found
    ):
        return config
    return {**config, "modules_to_save": [*saved, "lm_head"]}


def _check_tied(
    path: Path, tensors: AdapterTensors, found: Mapping[str, np.ndarray]
) -> None:
    """A tied head that is stored beside the embedding must be the same."""
    head = f"{tensors.prefix}lm_head.weight"
    tables = [
        name
        for name, view in tensors.views.items()
        if name != head and view is tensors.views[head]
    ]
    if head in found and any(
        name in found and not np.array_equal(found[name], found[head])
        for name in tables
    ):
        raise AdapterError(
            f"{path}: {head} differs from {tables[0]}, to which {CONFIG} says it is tied"
        )


def _check(
    path: Path, wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> None:
    problems = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"extra {name}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name}: expected shape {list(wanted[name].shape)}, got {list(found[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:12]) + (
            f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        )
        raise AdapterError(f"{path} does not fit the model and its {CONFIG}: {shown}")
