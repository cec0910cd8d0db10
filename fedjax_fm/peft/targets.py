"""Finds modules by name, as PEFT does, whatever other methods have put around them."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flax import nnx

from fedjax_fm.models.stacked import Segments

Targets = str | Sequence[str] | Callable[[str], bool]


class Wrapper(nnx.Module):
    """A module that stands in the place of another one, `base`, and calls it.

    What a wrapper does to a linear layer is `fold(kernel, bias) -> (kernel, bias)`, and `unfold` its inverse, where it
    can be said so.
    """

    base: Any
    fold: Callable | None = None
    unfold: Callable | None = None


def named_modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """(dotted path, module) of every module inside `model`; the root's path is ''."""
    for path, module in nnx.iter_modules(model):
        yield ".".join(map(str, path)), module


def plain_names(model: nnx.Module) -> Callable[[str], str]:
    """f(path of a module or parameter) -> its path in the model before any method changed it: without the `base` of
    wrappers and the `parts.N` of segments."""
    modules = dict(named_modules(model))
    skips = {path: 1 for path, module in modules.items() if isinstance(module, Wrapper)}
    skips |= {path: 2 for path, module in modules.items() if isinstance(module, Segments)}
    words = {1: ("base",), 2: ("parts",)}

    def plain(path: str) -> str:
        parts, kept, position = path.split("."), [], 0
        while position < len(parts):
            skip = skips.get(".".join(parts[:position]))
            if skip and parts[position] in words[skip]:
                position += skip
                continue
            kept.append(parts[position])
            position += 1
        return ".".join(kept)

    return plain


def matches(path: str, targets: Targets) -> bool:
    """A string is a regular expression, searched in the path; a list holds path endings; a function decides itself."""
    if callable(targets):
        return targets(path)
    if isinstance(targets, str):
        return re.search(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets)


def find_modules(model: nnx.Module, targets: Targets, kind: type) -> dict[str, Any]:
    """{path: module} of all modules of `kind` that `targets` names; the patterns see plain paths.

    Raises:
      ValueError: nothing matches; lists what there is.
    """
    plain = plain_names(model)
    modules = {path: module for path, module in named_modules(model) if isinstance(module, kind)}
    found = {path: module for path, module in modules.items() if matches(plain(path), targets)}
    if not found:
        names = sorted({plain(path) for path in modules})
        last = sorted({name.rsplit(".", 1)[-1] for name in names})
        wanted = "" if callable(targets) else targets if isinstance(targets, str) else " ".join(targets)
        near = difflib.get_close_matches(wanted, last, n=1)
        raise ValueError(
            f"targets={targets!r} match no {kind.__name__}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" There are: {', '.join(names) or 'none'}"
        )
    return found


def get_module(model: nnx.Module, path: str) -> Any:
    """The module (or parameter) at a dotted path; '' is the model."""
    owner: Any = model
    for part in path.split(".") if path else ():
        if part.isdigit():
            owner = owner[int(part)]
        else:
            owner = getattr(owner, part) if hasattr(owner, part) else owner[part]
    return owner


def replace_module(model: nnx.Module, path: str, new: nnx.Module) -> None:
    """Puts `new` in the place that `path` names."""
    if not path:
        raise ValueError(f"the model itself, a {type(model).__name__}, cannot be wrapped: put it into a module")
    parent, _, name = path.rpartition(".")
    owner = get_module(model, parent)
    if name.isdigit():
        owner[int(name)] = new
    else:
        setattr(owner, name, new)


def stack_root(model: nnx.Module, path: str) -> str | None:
    """Path of the layer that a module belongs to or is: the outermost stack above it, else the numbered entry of a list."""
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        above = ".".join(parts[:length])
        if parts[length - 1].isdigit() or hasattr(get_module(model, above), "stacked_layers"):
            return above
    return None
