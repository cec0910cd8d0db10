"""Linear layers one by one, as PEFT sees them.

Each layer of a stack under its own name, with its own choice.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx

from fedjax_fm.models.stacked import Segments
from fedjax_fm.peft.layers import cut_runs
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
_PROJECTIONS_OF_PIXELS = (
    "patch_embed"  # convolutions at Hugging Face, linear layers on flat patches here
)


class Place(NamedTuple):
    """A linear layer of one number.

    Attributes:
      path: of the module in the model, which holds the layers of a run.
      plain: the path without what methods have put around it.
      name: Hugging Face's, with the layer's number.
      layer: its number, None outside of stacks.
    """

    path: str
    plain: str
    name: str
    layer: int | None


Choose = Callable[[Place], Hashable]


def places(model: nnx.Module) -> list[Place]:
    """All linear layers of a model, those of a stack one by one."""
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
    """Whether `targets` name a layer.

    By its plain path as everywhere here, or by its numbered name as PEFT does, where an
    expression must match the whole name.
    """
    if matches(place.plain, targets):
        return True
    if callable(targets):
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, place.name) is not None
    return matches(place.name, targets)


def is_inside(plain: str, modules: Iterable[str]) -> bool:
    """Whether a path is, or lies below, a module whose path ends in one of `modules`."""
    words = plain.split(".")
    above = [".".join(words[:length]) for length in range(1, len(words) + 1)]
    return any(matches(path, [module]) for module in modules for path in above)


def all_linear(place: Place) -> bool:
    """PEFT's "all-linear": every linear layer but the head, be it of a language model
    or of a classifier.
    """
    return (
        not is_inside(place.plain, ("lm_head", *HEADS))
        and _PROJECTIONS_OF_PIXELS not in place.plain
    )


def selected(
    model: nnx.Module,
    targets: Targets,
    exclude_modules: Targets | None = None,
    modules_to_save: Sequence[str] = (),
) -> list[Place]:
    """The linear layers that `targets` name, without the excluded ones and those that
    are trained in full.

    Raises:
      ValueError: an entry that matches nothing, or only what is trained in full or excluded.
    """
    there = places(model)
    plain = sorted({place.plain for place in there})
    if targets == ALL_LINEAR:
        named = [place for place in there if all_linear(place)]
    else:
        named = [place for place in there if is_named(place, targets)]
        unmatched = [
            entry
            for entry in entries(targets)
            if not any(is_named(place, entry) for place in there)
        ]
        refuse_unmatched(
            "targets",
            unmatched,
            LinearLayer.__name__,
            plain,
            tied_head(model, unmatched),
        )
    if exclude_modules is not None:
        unmatched = [
            entry
            for entry in entries(exclude_modules)
            if not any(is_named(p, entry) for p in there)
        ]
        refuse_unmatched("exclude_modules", unmatched, LinearLayer.__name__, plain)
        named = [place for place in named if not is_named(place, exclude_modules)]
    kept = [place for place in named if not is_inside(place.plain, modules_to_save)]
    _refuse_whole(targets, named, kept, modules_to_save)
    if not kept:
        raise ValueError(
            f"targets={targets!r} without exclude_modules={exclude_modules!r} leave no linear layer"
        )
    return kept


def _refuse_whole(
    targets: Targets, named: list[Place], kept: list[Place], modules: Sequence[str]
) -> None:
    """Raises where all that one entry names is trained in full anyway."""
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
    """{path: layer} of the linear layers that `targets` name, for methods that treat
    all layers of a stack alike.

    Raises:
      ValueError: as `selected`; names that pick some layers of a stack only.
    """
    if isinstance(model, LinearLayer) and not callable(targets):
        return find_modules(model, targets, LinearLayer)
    chosen = selected(model, targets, modules_to_save=modules_to_save)
    found: dict[str, list[Place]] = {}
    for place in chosen:
        found.setdefault(place.path, []).append(place)
    names = Names(model)
    for path, here in found.items():
        if len(here) != len(names.layers(path) or [None]):
            raise ValueError(
                f"targets={targets!r} name some layers of {here[0].plain} only; "
                "choose layers by peft.on_layers"
            )
    return {path: get_module(model, path) for path in found}


def of_pattern(pattern: Mapping[str, Any], place: Place, otherwise: Any) -> Any:
    """The value of a layer in PEFT's `rank_pattern` or `alpha_pattern`.

    The first key that the name ends in, each key an expression.
    """
    for key, value in pattern.items():
        if any(
            re.match(rf"(.*\.)?({key})$", name) for name in (place.name, place.plain)
        ):
            return value
    return otherwise


def refuse_unused(
    name: str, pattern: Mapping[str, Any], chosen: Sequence[Place]
) -> None:
    """Raises for keys of a pattern that no adapted layer has."""
    unused = [
        key
        for key in pattern
        if not any(of_pattern({key: True}, place, False) for place in chosen)
    ]
    refuse_unmatched(
        name,
        [[key] for key in unused],
        "adapted layer",
        sorted({place.plain for place in chosen}),
    )


def cut_by_choice(
    model: nnx.Module, choices: Mapping[Place, Hashable]
) -> dict[str, Any]:
    """{path: choice} of the adapted modules, whose layers all have it.

    Stacks whose layers differ are cut into runs.

    Args:
      model: changed in place where stacks are cut.
      choices: what each adapted layer is to have.
    """
    wanted = {(place.plain, place.layer): choice for place, choice in choices.items()}
    names = Names(model)
    labels: dict[str, list[list]] = {}
    for place in places(model):
        if place.layer is not None:
            stack = names.layers_of(place.path)[0]
            n_layers = _n_layers(get_module(model, stack))
            here = labels.setdefault(stack, [[] for _ in range(n_layers)])
            here[place.layer].append(
                (place.plain, wanted.get((place.plain, place.layer)))
            )
    for stack, by_layer in labels.items():
        runs = [tuple(sorted(layer, key=lambda entry: entry[0])) for layer in by_layer]
        if len(set(runs)) > 1:
            replace_module(model, stack, cut_runs(get_module(model, stack), runs))
    found = {
        place.path: wanted.get((place.plain, place.layer)) for place in places(model)
    }
    return {path: choice for path, choice in found.items() if choice is not None}


def _n_layers(stack: Any) -> int:
    return (
        sum(part.stacked_layers for part in stack.parts)
        if isinstance(stack, Segments)
        else stack.stacked_layers
    )
