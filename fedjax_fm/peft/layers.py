"""Stacks of layers, and methods that act in some of their layers only."""

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from flax import nnx

from fedjax_fm.checks import whole
from fedjax_fm.models.stacked import Segments, Shared
from fedjax_fm.peft.method import Method, head_paths, parameter_paths
from fedjax_fm.peft.patterns import HEADS, check_names, check_targets, matches
from fedjax_fm.peft.targets import (
    dotted,
    get_module,
    named_modules,
    plain_names,
    replace_module,
)


def stacks(model: nnx.Module) -> dict[str, int]:
    """Finds every stack of layers and every list of modules.

    Args:
      model: adapted or not.

    Returns:
      {path: number of layers}, without those that lie inside of another one.
    """
    found = {}
    for path, module in named_modules(model):
        if isinstance(module, Segments) or hasattr(module, "stacked_layers"):
            found[path] = n_layers(module)
        elif _is_list_of_modules(module):
            found[path] = len(module)  # pyright: ignore[reportArgumentType]

    def inside(path: str) -> bool:
        return any(path != other and path.startswith(f"{other}.") for other in found)

    return {path: n for path, n in found.items() if not inside(path)}


def _is_list_of_modules(module: Any) -> bool:
    """Whether a module is a list of other modules, and of nothing else."""
    if not isinstance(module, nnx.List):
        return False
    return all(isinstance(entry, nnx.Module) for entry in module)


def n_layers(stack: Any) -> int:
    """Returns the number of layers of a stack.

    Args:
      stack: a stacked module, or one that was cut into `Segments`.

    Returns:
      The number of layers, over all segments.
    """
    if isinstance(stack, Segments):
        return sum(part.stacked_layers for part in stack.parts)
    return stack.stacked_layers


def _cut(part: Any, start: int, stop: int) -> Any:
    """Layers start to stop - 1 of a stacked module; shared variables are not copied."""
    graphdef, shared, state = nnx.split(part, Shared, ...)
    rows = jax.tree.map(lambda leaf: leaf[start:stop], state)
    piece = nnx.merge(graphdef, shared, rows)
    for path, variable in nnx.iter_graph(part):
        if isinstance(variable, Shared):
            owner, name = get_module(piece, dotted(path[:-1])), str(path[-1])
            setattr(owner, name, variable)
    piece.stacked_layers = stop - start
    return piece


def cut_runs(stack: Any, labels: Sequence[Hashable]) -> Segments:
    """Cuts a stack into runs of layers with equal labels.

    Args:
      stack: a stacked module, or `Segments`, whose cuts stay.
      labels: one for each layer.

    Returns:
      The runs in order.
    """
    pieces, start = [], 0
    for part in stack.parts if isinstance(stack, Segments) else [stack]:
        here = labels[start : start + part.stacked_layers]
        changes = [i for i in range(1, len(here)) if here[i] != here[i - 1]]
        for first, end in itertools.pairwise([0, *changes, len(here)]):
            whole_part = end - first == len(here)
            pieces.append(part if whole_part else _cut(part, first, end))
        start += len(here)
    return Segments(pieces)


def _split(stack: Any, chosen: Sequence[int]) -> tuple[Segments, list[int]]:
    """(the stack cut into runs, the numbers of the runs that hold chosen layers)."""
    labels = [layer in chosen for layer in range(n_layers(stack))]
    segments = cut_runs(stack, labels)
    lengths = [part.stacked_layers for part in segments.parts]
    firsts = itertools.accumulate(lengths, initial=0)
    return segments, [number for number, first in enumerate(firsts) if first in chosen]


def on_layers(
    method: Method,
    layers: Sequence[int],
    *,
    at: str | None = None,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """Applies a method inside the chosen layers only.

    The stack is cut into runs of layers. Layers that are not chosen stay leaves of the
    backbone: they have no gradient and no copy for each client.

    Args:
      method: what is applied. It sees paths inside of a layer, also for its own
        `modules_to_save`.
      layers: numbers of layers, from 0; negative ones count from the end.
      at: a regular expression that picks the stack, where a model has several (encoder
        and decoder). None: the model has one.
      modules_to_save: modules outside of the layers that are trained in full; by
        default the head, where the model has one.

    Returns:
      The method.

    Raises:
      TypeError: an argument has a wrong type.
      ValueError: no layers; by `apply`, a layer that the model does not have, or not
        exactly one stack.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import peft
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Dict(
      ...     layers=nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])
      ... )
      >>> adapted = peft.apply(model, peft.on_layers(peft.bitfit(), [-1]))
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'layers': {2: {'bias': (4,)}}}
    """
    layers = [whole("layers", layer) for layer in layers]
    check_names("modules_to_save", modules_to_save)
    if at is not None:
        check_targets("at", at)
    if not layers:
        raise ValueError("expected at least one layer")

    def chosen_of(path: str, n: int) -> list[int]:
        unknown = [layer for layer in layers if not -n <= layer < n]
        if unknown:
            raise ValueError(
                f"unknown layers {unknown}: {path} has layers 0 to {n - 1}"
            )
        return sorted({layer % n for layer in layers})

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        plain, there = plain_names(model), stacks(model)
        found = [path for path in there if at is None or matches(plain(path), at)]
        if len(found) != 1:
            names = ", ".join(plain(path) for path in there) or "none"
            where = "" if at is None else f" at {at!r}"
            raise ValueError(
                f"expected one stack of layers{where}, found {len(found)}; "
                f"there are: {names}"
            )
        (path,) = found
        stack = get_module(model, path)
        chosen = chosen_of(plain(path), there[path])
        if isinstance(stack, nnx.List):
            roots = [f"{path}.{layer}" for layer in chosen]
        else:
            segments, numbers = _split(stack, chosen)
            replace_module(model, path, segments)
            roots = [f"{path}.parts.{number}" for number in numbers]
        trainable = head_paths(model, modules_to_save)
        # What all layers share already is not trained by one of them.
        variables = parameter_paths(model).values()
        common = [variable for variable in variables if isinstance(variable, Shared)]
        for number, root in enumerate(roots):
            layer = get_module(model, root)
            inner = method.install(layer, jax.random.fold_in(key, number))
            variables = parameter_paths(layer)
            own = {
                rest for rest in inner if not any(variables[rest] is v for v in common)
            }
            trainable |= {(*root.split("."), *rest) for rest in own}
        return trainable

    return Method(f"{method.name} on layers {list(layers)}", install)


def each_layer(model: nnx.Module) -> Callable[[str], tuple[str, range | None]]:
    """Makes a function that says in which layers of which stack a path lies.

    Args:
      model: adapted or not.

    Returns:
      `f(path of a module or parameter) -> (path of its stack, numbers of its layers)`;
      ("", None) outside of stacks.
    """
    modules = dict(named_modules(model))

    def find(path: str) -> tuple[str, range | None]:
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            above = ".".join(parts[:length])
            module: Any = modules.get(above)
            below = parts[length + 1 : length + 2]  # behind the word "parts"
            if isinstance(module, Segments) and below and below[0].isdigit():
                number = int(below[0])
                lengths = [part.stacked_layers for part in module.parts]
                start = sum(lengths[:number])
                return above, range(start, start + lengths[number])
            if module is not None and hasattr(module, "stacked_layers"):
                stacked: Any = module
                return above, range(stacked.stacked_layers)
        return "", None

    return find
