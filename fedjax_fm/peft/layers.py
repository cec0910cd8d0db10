"""Layer selection: a method that acts in some layers of a stack only, the others
staying frozen and shared.
"""

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
    get_module,
    named_modules,
    plain_names,
    replace_module,
)


def stacks(model: nnx.Module) -> dict[str, int]:
    """{path: number of layers} of every stack and of every list of modules."""
    found = {}
    for path, module in named_modules(model):
        if isinstance(module, Segments):
            found[path] = sum(part.stacked_layers for part in module.parts)
        elif hasattr(module, "stacked_layers"):
            found[path] = module.stacked_layers  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(module, nnx.List) and all(
            isinstance(entry, nnx.Module) for entry in module
        ):
            found[path] = len(module)

    def inside(path):
        return any(path != other and path.startswith(f"{other}.") for other in found)

    return {path: n for path, n in found.items() if not inside(path)}


def _cut(part: Any, start: int, stop: int) -> Any:
    """Layers start to stop - 1 of a stacked module; what all layers share stays one variable."""
    graphdef, shared, state = nnx.split(part, Shared, ...)
    rows = jax.tree.map(lambda leaf: leaf[start:stop], state)
    piece = nnx.merge(graphdef, shared, rows)
    for path, variable in nnx.iter_graph(part):
        if isinstance(variable, Shared):
            owner = get_module(piece, ".".join(map(str, path[:-1])))
            setattr(owner, str(path[-1]), variable)
    piece.stacked_layers = stop - start
    return piece


def cut_runs(stack: Any, labels: Sequence[Hashable]) -> Segments:
    """The stack cut into runs of layers with equal labels.

    Where it has been cut already, those cuts stay.
    """
    pieces, start = [], 0
    for part in stack.parts if isinstance(stack, Segments) else [stack]:
        here = labels[start : start + part.stacked_layers]
        cuts = [
            0,
            *(i for i in range(1, len(here)) if here[i] != here[i - 1]),
            len(here),
        ]
        for first, end in itertools.pairwise(cuts):
            pieces.append(part if end - first == len(here) else _cut(part, first, end))
        start += len(here)
    return Segments(pieces)


def _split(stack: Any, chosen: Sequence[int]) -> tuple[Segments, list[int]]:
    """(the stack cut into runs, which of them hold chosen layers)."""
    n_layers = (
        sum(part.stacked_layers for part in stack.parts)
        if isinstance(stack, Segments)
        else stack.stacked_layers
    )
    segments = cut_runs(stack, [layer in chosen for layer in range(n_layers)])
    firsts = itertools.accumulate(
        (part.stacked_layers for part in segments.parts), initial=0
    )
    return segments, [number for number, first in enumerate(firsts) if first in chosen]


def on_layers(
    method: Method,
    layers: Sequence[int],
    *,
    at: str | None = None,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """`method` inside the chosen layers only.

    `on_layers(full(), [10, 11])`, `on_layers(lora(...), range(6))`.

    Args:
      method: its own `modules_to_save` lie inside the layers.
      layers: numbers of layers, from 0; negative ones count from the end.
      at: a regular expression that picks the stack, where a model has several (encoder
        and decoder).
      modules_to_save: modules outside of the layers that are trained in full beside it.

    Patterns of `method` see paths inside a layer. The stack is cut into runs of layers,
    so frozen layers stay leaves of the backbone of their own: they have no gradient and
    no copy per client.
    """
    layers = [whole("layers", layer) for layer in layers]
    check_names("modules_to_save", modules_to_save)
    if at is not None:
        check_targets("at", at)
    if not layers:
        raise ValueError("expected at least one layer")

    def chosen_of(path: str, n_layers: int) -> list[int]:
        unknown = [layer for layer in layers if not -n_layers <= layer < n_layers]
        if unknown:
            raise ValueError(
                f"unknown layers {unknown}: {path} has layers 0 to {n_layers - 1}"
            )
        return sorted({layer % n_layers for layer in layers})

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        plain, there = plain_names(model), stacks(model)
        found = [path for path in there if at is None or matches(plain(path), at)]
        if len(found) != 1:
            names = ", ".join(plain(path) for path in there) or "none"
            raise ValueError(
                f"expected one stack of layers{_at(at)}, found {len(found)}; there are: {names}"
            )
        path, stack = found[0], get_module(model, found[0])
        chosen = chosen_of(plain(path), there[path])
        if isinstance(stack, nnx.List):
            roots = [f"{path}.{layer}" for layer in chosen]
        else:
            segments, numbers = _split(stack, chosen)
            replace_module(model, path, segments)
            roots = [f"{path}.parts.{number}" for number in numbers]
        trainable = head_paths(model, modules_to_save)
        # What other layers share already is not this layer's to train.
        common = [v for v in parameter_paths(model).values() if isinstance(v, Shared)]
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


def _at(at: str | None) -> str:
    return "" if at is None else f" at {at!r}"


def each_layer(model: nnx.Module) -> Callable[[str], tuple[str, range | None]]:
    """f(path of a module or parameter) -> (path of the stack that it lies in, '' for none.

    Which layers it holds).
    """
    modules = dict(named_modules(model))

    def find(path: str) -> tuple[str, range | None]:
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            above = ".".join(parts[:length])
            module = modules.get(above)
            if (
                isinstance(module, Segments)
                and len(parts) > length + 1
                and parts[length + 1].isdigit()
            ):
                number = int(parts[length + 1])
                start = sum(part.stacked_layers for part in list(module.parts)[:number])
                return above, range(start, start + module.parts[number].stacked_layers)
            if module is not None and hasattr(module, "stacked_layers"):
                # pyright: ignore[reportAttributeAccessIssue]
                return above, range(module.stacked_layers)
        return "", None

    return find
