"""Linear layers one by one, as in PEFT: each layer of a stack has its own name."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from flax import nnx

from fedjax_fm.peft.layers import cut_runs, n_layers
from fedjax_fm.peft.linear import LinearLayer
from fedjax_fm.peft.names import Names
from fedjax_fm.peft.patterns import HEADS, Targets, entries, matches, refuse_unmatched
from fedjax_fm.peft.targets import (
    find_modules,
    get_module,
    named_modules,
    replace_module,
    tied_head,
)

ALL_LINEAR = "all-linear"
# Convolutions at Hugging Face, linear layers on flat patches or windows here.
_PROJECTIONS_OF_PIXELS = "patch_embed"
_CONVOLUTIONS_OF_SOUND = ("encoder.conv1", "encoder.conv2")


class Place(NamedTuple):
    """One linear layer; a stacked module has a place for each of its layers.

    Attributes:
      path: dotted, of the module in the model, which may hold several layers.
      plain: the path before any method changed the model.
      name: Hugging Face's name, with the number of the layer.
      layer: this number; None outside of stacks.
    """

    path: str
    plain: str
    name: str
    layer: int | None


Choose = Callable[[Place], Hashable]


def places(model: nnx.Module) -> list[Place]:
    """Lists all linear layers of a model, those of a stack one by one.

    Args:
      model: adapted or not.

    Returns:
      One place for each.
    """
    names, found = Names(model), []
    for path, module in named_modules(model):
        if path and isinstance(module, LinearLayer):
            plain, layers = names.plain(path), names.layers(path)
            numbers = [None] if layers is None else list(layers)
            found += [
                Place(path=path, plain=plain, name=name, layer=n)
                for name, n in zip(names.module(path), numbers, strict=True)
            ]
    return found


def is_named(place: Place, targets: Targets) -> bool:
    """Whether `targets` name a layer, by its plain path or by its name with a number.

    Args:
      place: the layer.
      targets: see `patterns.matches`. As in PEFT, an expression must match the whole
        numbered name.

    Returns:
      True if one of both matches.
    """
    if matches(place.plain, targets):
        return True
    if callable(targets):
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, place.name) is not None
    return matches(place.name, targets)


def is_inside(plain: str, modules: Iterable[str]) -> bool:
    """Whether a path is, or lies below, a module whose path ends in one of `modules`.

    Args:
      plain: dotted path.
      modules: endings of paths.

    Returns:
      True if so.

    Example:
      >>> is_inside("bert.classifier.dense", ["classifier"])
      True
    """
    words = plain.split(".")
    above = [".".join(words[:length]) for length in range(1, len(words) + 1)]
    endings = list(modules)
    return any(matches(path, endings) for path in above)


def all_linear(place: Place) -> bool:
    """Whether PEFT's "all-linear" takes a layer: it takes all but those of the head.

    Args:
      place: the layer.

    Returns:
      False for heads of language models and classifiers, and for what reads pixels or
      sound.
    """
    left_out = ("lm_head", *HEADS, *_CONVOLUTIONS_OF_SOUND)
    return (
        not is_inside(place.plain, left_out)
        and _PROJECTIONS_OF_PIXELS not in place.plain
    )


def selected(
    model: nnx.Module,
    targets: Targets,
    exclude_modules: Targets | None = None,
    modules_to_save: Sequence[str] = (),
) -> list[Place]:
    """Selects the linear layers that `targets` name.

    Args:
      model: adapted or not.
      targets: see `is_named`; or "all-linear".
      exclude_modules: layers that are left out, named likewise.
      modules_to_save: endings of paths of modules that are trained in full; layers
        inside of them are left out.

    Returns:
      The layers.

    Raises:
      ValueError: an entry matches nothing, or only layers that are left out.
    """
    there = places(model)
    plain = sorted({place.plain for place in there})
    if targets == ALL_LINEAR:
        named = [place for place in there if all_linear(place)]
    else:
        named = [place for place in there if is_named(place, targets)]
        unmatched = _unnamed(there, targets)
        hint = tied_head(model, unmatched)
        refuse_unmatched("targets", unmatched, LinearLayer.__name__, plain, hint=hint)
    if exclude_modules is not None:
        unmatched = _unnamed(there, exclude_modules)
        refuse_unmatched("exclude_modules", unmatched, LinearLayer.__name__, plain)
        named = [place for place in named if not is_named(place, exclude_modules)]
    kept = [place for place in named if not is_inside(place.plain, modules_to_save)]
    _refuse_whole(targets, named, kept, modules_to_save)
    if not kept:
        raise ValueError(
            f"targets={targets!r} without exclude_modules={exclude_modules!r} leave no "
            "linear layer"
        )
    return kept


def _unnamed(there: Sequence[Place], targets: Targets) -> list[Targets]:
    """The entries of `targets` that name none of the layers."""
    found = []
    for entry in entries(targets):
        if not any(is_named(place, entry) for place in there):
            found.append(entry)
    return found


def _refuse_whole(
    targets: Targets, named: list[Place], kept: list[Place], modules: Sequence[str]
) -> None:
    """Raises ValueError where all layers of one entry are trained in full already."""
    lost = [place for place in named if place not in kept]
    for entry in entries(targets) if targets != ALL_LINEAR else []:
        whole = [place.plain for place in lost if is_named(place, entry)]
        if whole and not any(is_named(place, entry) for place in kept):
            raise ValueError(
                f"targets={entry!r} name {whole[0]}, which "
                f"modules_to_save={list(modules)} train in full already; leave it "
                "out of one of them"
            )


def find_linears(
    model: nnx.Module, targets: Targets, modules_to_save: Sequence[str] = ()
) -> dict[str, Any]:
    """Finds linear layers for methods that treat all layers of a stack alike.

    Args:
      model: adapted or not.
      targets: see `selected`.
      modules_to_save: see `selected`.

    Returns:
      {path: module}.

    Raises:
      ValueError: as `selected`; or `targets` name only some layers of a stack.
    """
    if isinstance(model, LinearLayer) and not callable(targets):
        return find_modules(model, targets, LinearLayer)
    chosen = selected(model, targets, modules_to_save=modules_to_save)
    found: dict[str, list[Place]] = {}
    for place in chosen:
        found.setdefault(place.path, []).append(place)
    names = Names(model)
    for path, here in found.items():
        layers = names.layers(path) or [None]
        if len(here) != len(layers):
            raise ValueError(
                f"targets={targets!r} name some layers of {here[0].plain} only; "
                "choose layers by peft.on_layers"
            )
    return {path: get_module(model, path) for path in found}


def of_pattern(pattern: Mapping[str, Any], place: Place, otherwise: Any) -> Any:
    """Looks a layer up in PEFT's `rank_pattern` or `alpha_pattern`.

    Args:
      pattern: {regular expression: value}.
      place: the layer.
      otherwise: the value where no key matches.

    Returns:
      The value of the first key that matches an ending of the layer's name or path.
    """
    for key, value in pattern.items():
        ending = re.compile(rf"(.*\.)?({key})$")
        if ending.match(place.name) or ending.match(place.plain):
            return value
    return otherwise


def refuse_unused(
    name: str, pattern: Mapping[str, Any], chosen: Sequence[Place]
) -> None:
    """Raises for keys of a pattern that no adapted layer has.

    Args:
      name: of the pattern, for the message.
      pattern: see `of_pattern`.
      chosen: the adapted layers.

    Raises:
      ValueError: there is such a key.
    """
    unused = []
    for key in pattern:
        if not any(of_pattern({key: True}, place, False) for place in chosen):
            unused.append([key])
    there = sorted({place.plain for place in chosen})
    refuse_unmatched(name, unused, "adapted layer", there)


def cut_by_choice(
    model: nnx.Module, choices: Mapping[Place, Hashable]
) -> dict[str, Any]:
    """Cuts stacks into runs so that all layers of a module have the same choice.

    Args:
      model: changed in place where the layers of a stack differ.
      choices: {layer: what it gets}; layers that are not adapted are not in it.

    Returns:
      {path: choice} of the modules that are adapted.
    """
    wanted = {(place.plain, place.layer): choice for place, choice in choices.items()}
    names = Names(model)
    labels: dict[str, list[list]] = {}
    for place in places(model):
        if place.layer is not None:
            stack = names.layers_of(place.path)[0]
            if stack not in labels:
                length = n_layers(get_module(model, stack))
                labels[stack] = [[] for _ in range(length)]
            choice = wanted.get((place.plain, place.layer))
            labels[stack][place.layer].append((place.plain, choice))
    for stack, by_layer in labels.items():
        runs = [tuple(sorted(layer, key=itemgetter(0))) for layer in by_layer]
        if len(set(runs)) > 1:
            segments = cut_runs(get_module(model, stack), runs)
            replace_module(model, stack, segments)
    found = {}
    for place in places(model):
        choice = wanted.get((place.plain, place.layer))
        if choice is not None:
            found[place.path] = choice
    return found
