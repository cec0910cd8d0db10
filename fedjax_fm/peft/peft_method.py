"""Methods as PEFT's configurations describe them, with PEFT's rules for names."""

import re
from collections import defaultdict
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
from fedjax_fm.peft.peft_fields import KNOWN, of_another_form, unsupported
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
    """A configuration or folder does not fit the model, or is not supported."""


def lora_from_config(config: Any) -> Method:
    """Makes LoRA or DoRA from PEFT's `LoraConfig`.

    Words and rules for names are PEFT's. Every field is honoured or refused. With
    `modules_to_save=None`, the classification head is trained where `task_type` is
    "SEQ_CLS" or "TOKEN_CLS", as in PEFT, and nothing more otherwise.

    Args:
      config: a `peft.LoraConfig`, its dict, or a parsed `adapter_config.json`;
        `target_modules` must be given.

    Returns:
      The method.

    Raises:
      AdapterError: a field whose value is not supported; by `apply`, names that the
        model does not have.

    Example:
      >>> from fedjax_fm import peft
      >>> config = {"r": 2, "lora_alpha": 16, "target_modules": ["q_proj"]}
      >>> model = nnx.Dict(q_proj=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora_from_config(config))
      >>> adapted.model().q_proj.scaling
      8.0
    """
    given = config if isinstance(config, Mapping) else config.to_dict()
    fields = {name: _plain(value) for name, value in dict(given).items()}
    fields["peft_type"] = "LORA"
    check_fields(fields)
    if fields.get("init_lora_weights", True) not in (True, None):
        raise AdapterError(
            f"init_lora_weights={fields['init_lora_weights']!r} is not supported "
            "for a new adapter; factors start as with PEFT's True"
        )
    task = str(fields.get("task_type")).rpartition(".")[2]
    classifies = task in ("SEQ_CLS", "TOKEN_CLS")
    saved = fields.get("modules_to_save")

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        if is_tied(model) and unties(fields, model):
            raise AdapterError(
                f"modules_to_save={saved} or "
                f"target_modules={fields['target_modules']} train the embedding "
                "or the head of a model without the other, which is tied to it; "
                "give peft.apply(peft.untie(model), ...)"
            )
        if saved is None and classifies:
            modules = HEADS
        else:
            modules = saved_modules(fields, model)
        method = lora_method(fields, modules, model, strict=True)
        return method.install(model, key)

    return Method("dora" if fields.get("use_dora") else "lora", install)


def _plain(value: Any) -> Any:
    """A set as a sorted list, anything else as it is."""
    return sorted(value) if isinstance(value, set) else value


def check_fields(config: Mapping[str, Any]) -> None:
    """Refuses configurations that ask for something that is not supported.

    Args:
      config: a parsed `adapter_config.json`.

    Raises:
      AdapterError: another method, an option that is not supported, or no targets.
      TypeError, ValueError: a number or a flag makes no sense.
    """
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in KNOWN:
        raise AdapterError(
            f"peft_type {kind!r} is not supported; expected {', '.join(KNOWN)}"
        )
    if problem := of_another_form(config):
        raise AdapterError(f"adapter_config.json: {problem}")
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
    if kind in ("PROMPT_TUNING", "PREFIX_TUNING"):
        whole("num_virtual_tokens", config.get("num_virtual_tokens"), least=1)


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Refuses numbers and flags of a LoraConfig that make no sense."""
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
    """Makes the method of a stored adapter.

    Args:
      config: a parsed `adapter_config.json`.
      model: the one that the adapter is for, see `model_for`.

    Returns:
      The method, for `apply` on this model.

    Raises:
      AdapterError, ValueError: names that the model does not have.
    """
    kind, saved = config["peft_type"], saved_modules(config, model)
    if kind == "LORA":
        return lora_method(config, saved, model)
    if kind == "IA3":
        targets = _names_whole_stacks(config, config["target_modules"], model)
        feedforward = config.get("feedforward_modules") or None
        inner = None
        if feedforward is not None:
            inner = _names_whole_stacks(config, feedforward, model)
        return ia3(targets, inner, modules_to_save=saved)
    make = prompt_tuning if kind == "PROMPT_TUNING" else prefix_tuning
    return make(config["num_virtual_tokens"], modules_to_save=saved)


def lora_method(
    config: Mapping[str, Any],
    saved: Sequence[str],
    model: nnx.Module,
    strict: bool = False,
) -> Method:
    """Makes LoRA on the layers of a model that PEFT would adapt.

    Args:
      config: a LoraConfig as a dict.
      saved: paths of the modules that are trained in full.
      model: the one that the method is for.
      strict: whether entries of `target_modules` that match nothing are refused. PEFT
        drops them, and for a stored adapter its tensors tell what it holds.

    Returns:
      The method.
    """
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}

    def choose(model: nnx.Module) -> dict[Place, Factors]:
        there = places(model)
        hit = _hit_by(config, config["target_modules"])
        found = {}
        for place in there:
            if hit(place):
                own_alpha = of_pattern(alphas, place, alpha)
                found[place] = Factors(
                    rank=of_pattern(ranks, place, rank), alpha=float(own_alpha)
                )
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
    if is_tied(model):
        tokens = _without_tied_head(tokens)
    return chosen_lora(choose, setup, saved, tokens)


def _refuse_missing(config: Mapping[str, Any], there: list[Place], some: bool) -> None:
    """Raises for targets and exclusions that name no linear layer, or leave none."""
    plain = sorted({place.plain for place in there})
    for name in ("target_modules", "exclude_modules"):
        given = config.get(name) or ()
        expression = isinstance(given, str)
        missing = []
        for entry in _listed(given):
            if not any(_named(entry, place, expression) for place in there):
                missing.append([entry])
        refuse_unmatched(name, missing, "LinearLayer", plain)
    if not some:
        targets = config["target_modules"]
        raise AdapterError(
            f"target_modules={targets!r} leave no layer to adapt after "
            "exclude_modules and layers"
        )


def _hit_by(
    config: Mapping[str, Any], targets: str | list[str]
) -> Callable[[Place], bool]:
    """PEFT's `check_target_module_exists`, as a function of a layer."""
    excluded, saved = config.get("exclude_modules"), config.get("modules_to_save") or ()

    def is_excluded(place: Place) -> bool:
        if not excluded:
            return False
        expression = isinstance(excluded, str)
        return any(_named(entry, place, expression) for entry in _listed(excluded))

    def hit(place: Place) -> bool:
        name = place.name
        if is_excluded(place):
            return False
        if any(re.match(rf"(^|.*\.){module}($|\..*)", name) for module in saved):
            return False
        if isinstance(targets, str):
            return _named(targets, place, True)
        if name in targets:
            return True
        by_ending = any(_named(entry, place, False) for entry in targets)
        return by_ending and _in_chosen_layers(config, name)

    return hit


def _listed(names: str | Iterable[str]) -> list[str]:
    """Names as a list, a single text as a list of one."""
    return [names] if isinstance(names, str) else list(names)


def _named(entry: str, place: Place, expression: bool) -> bool:
    """Whether an expression, or an ending, names a layer."""
    if expression and entry.lower() == ALL_LINEAR:
        return all_linear(place)
    if expression:
        return re.fullmatch(entry, place.name) is not None
    return place.name == entry or place.name.endswith(f".{entry}")


def _in_chosen_layers(config: Mapping[str, Any], name: str) -> bool:
    """Whether the first number behind `layers_pattern` is in `layers_to_transform`."""
    chosen = config.get("layers_to_transform")
    if chosen is None or chosen == []:
        return True
    numbers = [chosen] if isinstance(chosen, int) else chosen
    patterns = _listed(config.get("layers_pattern") or ())
    expressions = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns]
    for expression in expressions or [r".*?\.[^.]*\.(\d+)\."]:
        found = re.match(expression, name)
        if found:
            return int(found[1]) in numbers
    return False


def _names_whole_stacks(
    config: Mapping[str, Any], targets: Any, model: nnx.Module
) -> Callable[[str], bool]:
    """Targets as a function of a plain path, for methods that act in whole stacks."""
    hit, by_path = _hit_by(config, targets), defaultdict(list)
    for place in places(model):
        by_path[place.plain].append(hit(place))
    partly = [path for path, hits in by_path.items() if any(hits) and not all(hits)]
    if partly:
        raise AdapterError(
            f"target_modules={targets!r} name some layers of {partly[0]} only, in "
            f"{config['peft_type']}"
        )
    return lambda path: any(by_path.get(path, ()))


def saved_modules(config: Mapping[str, Any], model: nnx.Module) -> list[str]:
    """Finds the modules that PEFT trains in full.

    Their names end in an entry of `modules_to_save`, at a dot or not.

    Args:
      config: a parsed `adapter_config.json`.
      model: the one that the adapter is for.

    Returns:
      Plain paths.

    Raises:
      ValueError: an entry that no module has, except for the heads that PEFT adds by
        itself.
      AdapterError: an entry names only some layers of a stack.
    """
    wanted = list(config.get("modules_to_save") or ())
    names = Names(model)
    named = {path: names.module(path) for path in names.modules}
    if is_tied(model) and keeps_tied(config):
        kept = [entry for entry in wanted if not "lm_head".endswith(entry)]
        if kept != wanted:
            wanted = [*kept, input_embedding(model)]
    everything = [name for own in named.values() for name in own]
    missing = []
    for entry in wanted:
        there = any(name.endswith(entry) for name in everything)
        if not there and entry not in HEADS:
            missing.append([entry])
    plain_paths = sorted(names.plain(path) for path in named)
    refuse_unmatched("modules_to_save", missing, "module", plain_paths)
    found: list[str] = []
    for path, own in sorted(named.items()):
        hits = [name.endswith(tuple(wanted)) for name in own]
        plain = names.plain(path)
        if any(hits) and not all(hits):
            raise AdapterError(
                f"modules_to_save={wanted} name some layers of {plain} only"
            )
        inside = tuple(f"{above}." for above in found)
        if all(hits) and not plain.startswith(inside):
            found.append(plain)
    return found


def input_embedding(model: Any) -> str:
    """Returns Hugging Face's name of a language model's token embedding.

    Args:
      model: a language model.

    Returns:
      A dotted name.
    """
    modules: dict[str, Any] = dict(named_modules(model))
    readers = [module for module in modules.values() if hasattr(module, "vocabulary")]
    table = readers[0].vocabulary
    path = next(path for path, module in modules.items() if module is table)
    return Names(model).module(path)[0]


def keeps_tied(config: Mapping[str, Any]) -> bool:
    """Whether PEFT trains a tied embedding and head as one.

    PEFT knows them by two names only, "embed_tokens" and "lm_head"; GPT-2's embedding
    has another.

    Args:
      config: a parsed `adapter_config.json`.

    Returns:
      True for LoRA with `ensure_weight_tying` that trains one of both in full.
    """
    saved = config.get("modules_to_save") or ()
    last_words = [name.rpartition(".")[2] for name in saved]
    known = any(word in ("embed_tokens", "lm_head") for word in last_words)
    asked = config.get("peft_type") == "LORA" and config.get("ensure_weight_tying")
    return bool(asked) and known


def unties(config: Mapping[str, Any], model: nnx.Module) -> bool:
    """Whether PEFT trains the embedding or the head of a tied model without the other.

    Args:
      config: a parsed `adapter_config.json`.
      model: a tied language model.

    Returns:
      True if so.
    """
    if keeps_tied(config):
        return False
    head = Place(path="lm_head", plain="lm_head", name="lm_head", layer=None)
    saved = tuple(config.get("modules_to_save") or ())
    if "lm_head".endswith(saved):
        return True
    if saved and input_embedding(model).endswith(saved):
        return True
    targets = config.get("target_modules")
    return bool(targets) and targets != ALL_LINEAR and _hit_by(config, targets)(head)


def model_for(config: Mapping[str, Any], model: nnx.Module) -> nnx.Module:
    """Returns the model that PEFT would adapt.

    Args:
      config: a parsed `adapter_config.json`.
      model: a model, tied or not.

    Returns:
      The model; a copy with a head of its own where the configuration unties it.

    Raises:
      AdapterError: the model cannot be untied.
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
    """`trainable_token_indices` without those of a tied head, if they are the same."""
    if not isinstance(tokens, Mapping) or "lm_head" not in tokens:
        return tokens
    others = {name: ids for name, ids in tokens.items() if name != "lm_head"}
    if list(others.values()) != [tokens["lm_head"]]:
        raise AdapterError(
            f"trainable_token_indices={dict(tokens)} train rows of the head by "
            "themselves, which is not supported"
        )
    return others
