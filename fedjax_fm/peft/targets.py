"""Finds modules by name, as PEFT does, whatever other methods have put around them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flax import nnx

from fedjax_fm.models.stacked import Segments
from fedjax_fm.peft.patterns import (
    Targets,
    entries,
    matches,
    refuse_unmatched,
    words_of,
)


class Wrapper(nnx.Module):
    """A module that stands in the place of another one, `base`, and calls it.

    What a wrapper does to a linear layer is `fold(kernel, bias) -> (kernel, bias)`, and
    `unfold` its inverse, where it can be said so.
    """

    base: Any
    fold: Callable | None = None
    unfold: Callable | None = None


def named_modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """(dotted path, module) of every module inside `model`; the root's path is ''."""
    for path, module in nnx.iter_modules(model):
        yield ".".join(map(str, path)), module


def plain_names(model: nnx.Module) -> Callable[[str], str]:
    """f(path of a module or parameter) -> its path in the model before any method changed it.

    Without the `base` of wrappers and the `parts.N` of segments.
    """
    modules = dict(named_modules(model))
    skips = {path: 1 for path, module in modules.items() if isinstance(module, Wrapper)}
    skips |= {
        path: 2 for path, module in modules.items() if isinstance(module, Segments)
    }
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


def find_modules(
    model: nnx.Module, targets: Targets, kind: type, name: str = "targets"
) -> dict[str, Any]:
    """{path: module} of all modules of `kind` that `targets` names; the patterns see plain paths.

    Raises:
      ValueError: an entry of a list, or an alternative of an expression, matches
        nothing; lists what there is. Of an `AnyOf` one entry is enough.
    """
    plain = plain_names(model)
    modules = {
        path: module
        for path, module in named_modules(model)
        if isinstance(module, kind)
    }
    found = {
        path: module
        for path, module in modules.items()
        if matches(plain(path), targets)
    }
    there = sorted({plain(path) for path in modules})
    unmatched = [
        entry
        for entry in entries(targets)
        if not any(matches(path, entry) for path in there)
    ]
    refuse_unmatched(name, unmatched, kind.__name__, there, tied_head(model, unmatched))
    return found


def tied_head(model: nnx.Module, unmatched: Sequence[Targets]) -> str:
    """What to say of a head that is no module as its weights are the embedding's; ''
    where that is not the matter.
    """
    wanted = any(
        "lm_head" in word
        for target in unmatched
        if not callable(target)
        for word in words_of(target)
    )
    if not wanted or not is_tied(model):
        return ""
    return (
        f"; the head of this {type(model).__name__} is its embedding: "
        "peft.untie(model) gives it weights of its own."
    )


def is_tied(model: Any) -> bool:
    """Whether a language model's head reads the table of its token embedding."""
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    return bool(tied) and hasattr(model, "head") and not hasattr(model, "lm_head")


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
        raise ValueError(
            f"the model itself, a {type(model).__name__}, cannot be wrapped: put it into a module"
        )
    parent, _, name = path.rpartition(".")
    owner = get_module(model, parent)
    if name.isdigit():
        owner[int(name)] = new
    else:
        setattr(owner, name, new)


def stack_root(model: nnx.Module, path: str) -> str | None:
    """Path of the layer that a module belongs to or is.

    The outermost stack above it, else the numbered entry of a list.
    """
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        above = ".".join(parts[:length])
        if parts[length - 1].isdigit() or hasattr(
            get_module(model, above), "stacked_layers"
        ):
            return above
    return None
