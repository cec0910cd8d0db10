"""The method that a PEFT configuration describes, its names matched by PEFT's own rules."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from fedjax_fm.checks import flag, real, whole
from fedjax_fm.peft.dora import DoRALinear
from fedjax_fm.peft.ia3 import ia3
from fedjax_fm.peft.lora import Factors, LoRALinear, Setup, chosen_lora
from fedjax_fm.peft.method import Method
from fedjax_fm.peft.names import Names
from fedjax_fm.peft.patterns import HEADS, refuse_unmatched
from fedjax_fm.peft.peft_fields import KNOWN, unsupported
from fedjax_fm.peft.places import (
    ALL_LINEAR,
    Place,
    all_linear,
    of_pattern,
    places,
    refuse_unused,
)
from fedjax_fm.peft.prefix import prefix_tuning
from fedjax_fm.peft.prompt import prompt_tuning
from fedjax_fm.peft.targets import is_tied, named_modules
from fedjax_fm.peft.tokens import check_token_indices
from fedjax_fm.peft.tying import untie


class AdapterError(ValueError):
    """An adapter's configuration or folder does not fit the model, or is not supported."""


def lora_from_config(config: Any) -> Method:
    """LoRA or DoRA as PEFT's `LoraConfig` describes it, with PEFT's words and rules for names.

    Args:
      config: a `peft.LoraConfig`, its dict, or the parsed `adapter_config.json`;
        `target_modules` must be given.

    Every field is honoured or refused. `modules_to_save=None` trains the classification
    head where `task_type` is "SEQ_CLS" or "TOKEN_CLS", as PEFT does, and nothing more
    otherwise.

    Raises:
      AdapterError: a field whose value is not supported; by `apply`, names that the
        model does not have.

    Example:
      >>> lora_from_config({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}).name
      'lora'
    """
    fields = dict(config) if isinstance(config, Mapping) else dict(config.to_dict())
    fields = {name: _plain(value) for name, value in fields.items()} | {
        "peft_type": "LORA"
    }
    check_fields(fields)
    if fields.get("init_lora_weights", True) not in (True, None):
        raise AdapterError(
            f"init_lora_weights={fields['init_lora_weights']!r} is not supported "
            "for a new adapter; factors start as with PEFT's True"
        )
    classifies = str(fields.get("task_type")).rpartition(".")[2] in (
        "SEQ_CLS",
        "TOKEN_CLS",
    )
    saved = fields.get("modules_to_save")

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        if is_tied(model) and unties(fields, model):
            raise AdapterError(
                f"modules_to_save={saved} or "
                f"target_modules={fields['target_modules']} train the embedding "
                "or the head of a model without the other, which is tied to it; "
                "give peft.apply(peft.untie(model), ...)"
            )
        modules = (
            HEADS if saved is None and classifies else saved_modules(fields, model)
        )
        return lora_method(fields, modules, model, strict=True).install(model, key)

    return Method("dora" if fields.get("use_dora") else "lora", install)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def check_fields(config: Mapping[str, Any]) -> None:
    """Raises for what a configuration asks for and is not done here."""
    kind = config.get("peft_type")
    if kind not in KNOWN:
        raise AdapterError(
            f"peft_type {kind!r} is not supported; expected {', '.join(KNOWN)}"
        )
    refused = unsupported(config)
    if refused:
        raise AdapterError(
            f"these options of adapter_config.json are not supported: {refused}"
        )
    targets = config.get("target_modules")
    if kind in ("LORA", "IA3") and not targets:
        raise AdapterError(
            f"target_modules={targets!r}: expected the names of the adapted modules"
        )
    if kind == "LORA":
        _check_numbers(config)


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Raises for numbers and flags of a LoraConfig that are none."""
    whole("r", config.get("r", 8), least=1)
    real("lora_alpha", config.get("lora_alpha", 8))
    real("lora_dropout", config.get("lora_dropout", 0.0), least=0, below=1)
    for name in ("use_rslora", "use_dora", "ensure_weight_tying"):
        flag(name, config.get(name, False))
    for rank in (config.get("rank_pattern") or {}).values():
        whole("rank_pattern", rank, least=1)
    for alpha in (config.get("alpha_pattern") or {}).values():
        real("alpha_pattern", alpha)


def method_of(config: Mapping[str, Any], model: nnx.Module) -> Method:
    """The method of a stored adapter; `model` is the one that it is for, see `model_for`."""
    kind, saved = config["peft_type"], saved_modules(config, model)
    if kind == "LORA":
        return lora_method(config, saved, model)
    if kind == "IA3":
        targets = _names_whole_stacks(config, config["target_modules"], model)
        feedforward = config.get("feedforward_modules") or None
        inner = (
            None
            if feedforward is None
            else _names_whole_stacks(config, feedforward, model)
        )
        return ia3(targets, inner, modules_to_save=saved)
    make = prompt_tuning if kind == "PROMPT_TUNING" else prefix_tuning
    return make(config["num_virtual_tokens"], modules_to_save=saved)


def lora_method(
    config: Mapping[str, Any],
    saved: Sequence[str],
    model: nnx.Module,
    strict: bool = False,
) -> Method:
    """LoRA on the layers of `model` that PEFT would adapt.

    Args:
      saved: paths of the modules that are trained in full.
      strict: whether entries of `target_modules` that match nothing are refused, which
        PEFT drops; the tensors of a stored adapter tell what it holds.
    """
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}

    def choose(model: nnx.Module) -> dict[Place, Factors]:
        there = places(model)
        hit = _hit_by(config, config["target_modules"])
        found = {
            place: Factors(
                rank=of_pattern(ranks, place, rank),
                alpha=float(of_pattern(alphas, place, alpha)),
            )
            for place in there
            if hit(place)
        }
        if strict or not found:
            _refuse_missing(config, there, bool(found))
        if strict:
            refuse_unused("rank_pattern", ranks, list(found))
            refuse_unused("alpha_pattern", alphas, list(found))
        return found

    setup = Setup(
        use_rslora=config.get("use_rslora", False),
        dropout=config.get("lora_dropout", 0.0),
        kind=DoRALinear if config.get("use_dora") else LoRALinear,
    )
    tokens = check_token_indices(config.get("trainable_token_indices"))
    return chosen_lora(
        choose, setup, saved, _without_tied_head(tokens) if is_tied(model) else tokens
    )


def _refuse_missing(config: Mapping[str, Any], there: list[Place], some: bool) -> None:
    """Raises for names in `target_modules` and `exclude_modules` that no linear layer has."""
    plain = sorted({place.plain for place in there})
    for name in ("target_modules", "exclude_modules"):
        given = config.get(name) or ()
        expression = isinstance(given, str)
        missing = [
            e
            for e in _listed(given)
            if not any(_named(e, place, expression) for place in there)
        ]
        refuse_unmatched(name, [[entry] for entry in missing], "LinearLayer", plain)
    if not some:
        targets = config["target_modules"]
        raise AdapterError(
            f"target_modules={targets!r} leave no layer to adapt after exclude_modules and layers"
        )


def _hit_by(
    config: Mapping[str, Any], targets: str | list[str]
) -> Callable[[Place], bool]:
    """PEFT's `check_target_module_exists` for one layer."""
    excluded, saved = config.get("exclude_modules"), config.get("modules_to_save") or ()

    def hit(place: Place) -> bool:
        name = place.name
        if excluded and any(
            _named(entry, place, isinstance(excluded, str))
            for entry in _listed(excluded)
        ):
            return False
        if any(re.match(rf"(^|.*\.){module}($|\..*)", name) for module in saved):
            return False
        if isinstance(targets, str):
            return _named(targets, place, True)
        if name in targets:
            return True
        return any(
            _named(entry, place, False) for entry in targets
        ) and _in_chosen_layers(config, name)

    return hit


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _named(entry: str, place: Place, expression: bool) -> bool:
    if expression and entry.lower() == ALL_LINEAR:
        return all_linear(place)
    if expression:
        return re.fullmatch(entry, place.name) is not None
    return place.name == entry or place.name.endswith(f".{entry}")


def _in_chosen_layers(config: Mapping[str, Any], name: str) -> bool:
    """Whether a layer's number is among `layers_to_transform`, the number being the
    first behind `layers_pattern`.
    """
    chosen, patterns = (
        config.get("layers_to_transform"),
        _listed(config.get("layers_pattern") or ()),
    )
    if chosen is None or chosen == []:
        return True
    expressions = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [
        r".*?\.[^.]*\.(\d+)\."
    ]
    number = next(
        (match for match in (re.match(e, name) for e in expressions) if match), None
    )
    return number is not None and int(number[1]) in (
        [chosen] if isinstance(chosen, int) else chosen
    )


def _names_whole_stacks(
    config: Mapping[str, Any], targets: Any, model: nnx.Module
) -> Callable[[str], bool]:
    """Targets as a function of a plain path, for methods that treat all layers of a stack alike."""
    hit, by_path = _hit_by(config, targets), {}
    for place in places(model):
        by_path.setdefault(place.plain, []).append(hit(place))
    partly = [path for path, hits in by_path.items() if any(hits) and not all(hits)]
    if partly:
        raise AdapterError(
            f"target_modules={targets!r} name some layers of {partly[0]} only, in "
            f"{config['peft_type']}"
        )
    return lambda path: any(by_path.get(path, ()))


def saved_modules(config: Mapping[str, Any], model: nnx.Module) -> list[str]:
    """Plain paths of the modules that PEFT trains in full: their names end in an entry, dot or not.

    Raises:
      AdapterError: an entry that no module has, other than the heads that PEFT adds
        unasked; some layers of a stack.
    """
    wanted = list(config.get("modules_to_save") or ())
    names = Names(model)
    named = {path: names.module(path) for path in names.modules}
    if (
        is_tied(model)
        and keeps_tied(config)
        and any("lm_head".endswith(entry) for entry in wanted)
    ):
        wanted = [entry for entry in wanted if not "lm_head".endswith(entry)] + [
            input_embedding(model)
        ]
    everything = [name for own in named.values() for name in own]
    missing = [
        entry
        for entry in wanted
        if not any(name.endswith(entry) for name in everything)
    ]
    missing = [entry for entry in missing if entry not in HEADS]
    refuse_unmatched(
        "modules_to_save",
        [[entry] for entry in missing],
        "module",
        sorted(map(names.plain, named)),
    )
    found: list[str] = []
    for path, own in sorted(named.items()):
        hits = [any(name.endswith(entry) for entry in wanted) for name in own]
        if any(hits) and not all(hits):
            raise AdapterError(
                f"modules_to_save={wanted} name some layers of {names.plain(path)} only"
            )
        if all(hits) and not any(
            names.plain(path).startswith(f"{above}.") for above in found
        ):
            found.append(names.plain(path))
    return found


def input_embedding(model: Any) -> str:
    """Hugging Face's name of a language model's token embedding."""
    names = Names(model)
    reader: Any = next(
        module for _, module in named_modules(model) if hasattr(module, "vocabulary")
    )
    path = next(
        path for path, module in named_modules(model) if module is reader.vocabulary
    )
    return names.module(path)[0]


def keeps_tied(config: Mapping[str, Any]) -> bool:
    """Whether PEFT trains a tied embedding and head as one.

    It knows them by two names only, which GPT-2's has not.
    """
    last_words = [
        name.rpartition(".")[2] for name in config.get("modules_to_save") or ()
    ]
    known = any(word in ("embed_tokens", "lm_head") for word in last_words)
    return (
        config.get("peft_type") == "LORA"
        and bool(config.get("ensure_weight_tying"))
        and known
    )


def unties(config: Mapping[str, Any], model: nnx.Module) -> bool:
    """Whether PEFT, given this configuration and a tied model, trains the embedding or
    the head without the other.
    """
    if keeps_tied(config):
        return False
    head = Place(path="lm_head", plain="lm_head", name="lm_head", layer=None)
    saved = config.get("modules_to_save") or ()
    if any(
        name.endswith(entry)
        for entry in saved
        for name in ("lm_head", input_embedding(model))
    ):
        return True
    targets = config.get("target_modules")
    return bool(targets) and targets != ALL_LINEAR and _hit_by(config, targets)(head)


def model_for(config: Mapping[str, Any], model: nnx.Module) -> nnx.Module:
    """The model that PEFT would adapt.

    With a head of its own, where the configuration unties it.
    """
    if not is_tied(model) or not unties(config, model):
        return model
    try:
        return untie(model)
    except ValueError as error:
        raise AdapterError(
            f"modules_to_save={config.get('modules_to_save')} and "
            f"target_modules={config.get('target_modules')} train the embedding "
            f"or the head of a tied model without the other: {error}"
        ) from error


def _without_tied_head(tokens: Any) -> Any:
    """`trainable_token_indices` without those of a tied head, which must be the embedding's."""
    if not isinstance(tokens, Mapping) or "lm_head" not in tokens:
        return tokens
    others = {name: ids for name, ids in tokens.items() if name != "lm_head"}
    if list(others.values()) != [tokens["lm_head"]]:
        raise AdapterError(
            f"trainable_token_indices={dict(tokens)} train rows of the head by "
            "themselves, which is not supported"
        )
    return others
