"""The trained part of a model as named arrays, in PEFT's names and torch's layout."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from fedjax_fm.peft.adapted import Adapted
from fedjax_fm.peft.peft_method import AdapterError
from fedjax_fm.peft.prefix import collapse
from fedjax_fm.peft.prompt import Prompt
from fedjax_fm.peft.targets import dotted, named_modules
from fedjax_fm.peft.tensors import AdapterTensors


def state_dict(adapted: Adapted, delta: Any = None) -> dict[str, np.ndarray]:
    """The arrays that `peft.get_peft_model_state_dict` gives for the same adapter.

    Args:
      adapted: from `apply` or `load_pretrained`.
      delta: for example `state.delta`; default: the values before training.

    Returns:
      {PEFT's name: array}, sorted, copies.

    Raises:
      ValueError: PEFT's format cannot hold what is trained.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(q_proj=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> arrays = peft.state_dict(adapted)
      >>> list(arrays)
      ['base_model.model.q_proj.lora_A.weight', 'base_model.model.q_proj.lora_B.weight']
      >>> arrays["base_model.model.q_proj.lora_A.weight"].shape
      (2, 4)
    """
    delta = adapted.delta if delta is None else delta
    tensors = trained_tensors(adapted.model(delta), delta)
    return named_arrays(tensors)


def with_state_dict(
    adapted: Adapted, arrays: Mapping[str, np.ndarray], *, source: str = "the state"
) -> Adapted:
    """The same adapter with other values, as `peft.set_peft_model_state_dict`.

    Unlike PEFT, which skips what it does not know, it refuses arrays that are missing,
    extra or of another shape. Base weights among them replace the model's.

    Args:
      adapted: from `apply` or `load_pretrained`; it is not changed.
      arrays: {PEFT's name: array}.
      source: whose arrays they are, for errors.

    Returns:
      The parts, with these values.

    Raises:
      AdapterError: arrays do not fit; all are listed.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(q_proj=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> arrays = {name: x + 1 for name, x in peft.state_dict(adapted).items()}
      >>> again = peft.with_state_dict(adapted, arrays)
      >>> float(again.model().q_proj.lora_b[...].max())
      1.0
    """
    model = adapted.model()
    trained = {dotted(path) for path, _ in nnx.to_flat_state(adapted.delta)}
    return filled(model, trained, arrays, source)


def filled(
    model: nnx.Module,
    trained: set[str],
    arrays: Mapping[str, np.ndarray],
    source: str | os.PathLike[str],
) -> Adapted:
    """Puts arrays into an adapted model and splits it.

    Args:
      model: adapted; it is changed.
      trained: dotted paths of its delta.
      arrays: {PEFT's name: array}.
      source: whose arrays they are, for errors.

    Raises:
      AdapterError: arrays do not fit.
    """
    fill(AdapterTensors(model, trained), arrays, source)
    graphdef, delta, backbone = nnx.split(
        model, lambda path, _: dotted(path) in trained, ...
    )
    return Adapted(graphdef=graphdef, delta=delta, backbone=backbone)


def trained_tensors(model: nnx.Module, delta: Any) -> AdapterTensors:
    """The tensors of an adapted model, networks behind prefixes collapsed.

    Args:
      model: adapted; it is not changed.
      delta: the trained part.
    """
    model = collapse(model)
    return AdapterTensors(model, trained_paths(model, delta))


def named_arrays(tensors: AdapterTensors) -> dict[str, np.ndarray]:
    """{name: array in torch's layout}, sorted, copies.

    Args:
      tensors: of a model.
    """
    return {
        name: np.array(view, order="C") for name, view in sorted(tensors.views.items())
    }


def trained_paths(model: nnx.Module, delta: Any) -> set[str]:
    """Dotted paths of the delta, prefixes and prompts as they are after `collapse`.

    Args:
      model: adapted and collapsed.
      delta: the trained part.
    """
    paths = {dotted(path) for path, _ in nnx.to_flat_state(delta)}
    found = set()
    for path in paths:
        is_virtual = {"prefix", "prompt"} & set(path.split(".")[:-1])
        if not is_virtual:
            found.add(path)
    for path, module in named_modules(model):
        if path.endswith(".prefix"):
            leaves = [leaf for leaf in ("keys", "values") if hasattr(module, leaf)]
            found |= {f"{path}.{leaf}" for leaf in leaves}
        if isinstance(module, Prompt):
            found.add(f"{path}.embedding")
    return found


def fill(
    tensors: AdapterTensors,
    found: Mapping[str, np.ndarray],
    source: str | os.PathLike[str],
) -> None:
    """Puts tensors by PEFT's names into a model.

    Args:
      tensors: of the model.
      found: {name: array}.
      source: whose they are, for errors.

    Raises:
      AdapterError: tensors are missing, extra or of another shape.
    """
    # PEFT may store base weights, too. Those of a tied head are there with some of its
    # settings and not with others.
    others = found.keys() - tensors.views.keys()
    wanted = tensors.views | tensors.base_views(others)
    if tensors.tied_head is not None:
        _check_tied(source, tensors, found)
        wanted = {
            name: view
            for name, view in wanted.items()
            if name in found or not name.endswith(".lm_head.weight")
        }
    _check(source, wanted, found)
    for name, view in wanted.items():
        view[...] = found[name]
    tensors.finish()


def _check_tied(
    source: Any, tensors: AdapterTensors, found: Mapping[str, np.ndarray]
) -> None:
    """Raises AdapterError for a stored head that differs from its embedding."""
    head = f"{tensors.prefix}lm_head.weight"
    tables = [
        name
        for name, view in tensors.views.items()
        if name != head and view is tensors.views[head]
    ]
    stored = [found[name] for name in tables if name in found]
    if head in found and not all(np.array_equal(one, found[head]) for one in stored):
        raise AdapterError(
            f"{source}: {head} differs from {tables[0]}, to which the adapter says it is "
            "tied"
        )


def _check(
    source: Any, wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> None:
    """Raises AdapterError for missing, extra or differently shaped tensors."""
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys())
    problems = [f"missing {name}" for name in missing]
    problems += [f"extra {name}" for name in extra]
    for name in sorted(wanted.keys() & found.keys()):
        expected, got = list(wanted[name].shape), list(found[name].shape)
        if expected != got:
            problems.append(f"{name}: expected shape {expected}, got {got}")
    if problems:
        shown = "; ".join(problems[:12])
        if len(problems) > 12:
            shown += f"; and {len(problems) - 12} more"
        raise AdapterError(f"{source} does not fit the model and its adapter: {shown}")
