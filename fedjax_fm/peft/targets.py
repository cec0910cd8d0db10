"""Finds modules by name, as PEFT does, also inside of what other methods have added."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """A module that takes the place of another one, `base`, and calls it.

    Attributes:
      base: the module inside.
      fold: `(kernel, bias) -> (kernel, bias)`, what the wrapper does to a linear layer,
        written into its weights; None where it cannot be written so.
      unfold: the inverse of `fold`, or None.
    """

    base: Any
    fold: Callable | None = None
    unfold: Callable | None = None


def dotted(path: Iterable[Any]) -> str:
    """Writes a path as text.

    Args:
      path: its parts, as nnx gives them.

    Returns:
      The parts joined by dots.

    Example:
      >>> dotted(("layers", 0, "kernel"))
      'layers.0.kernel'
    """
    return ".".join(str(part) for part in path)


def named_modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """Lists every module inside `model`, itself among them.

    Args:
      model: any module.

    Yields:
      (dotted path, module); the path of `model` itself is ''.
    """
    for path, module in nnx.iter_modules(model):
        yield dotted(path), module


def plain_names(model: nnx.Module) -> Callable[[str], str]:
    """Makes a function from paths to paths in the model before any method changed it.

    Plain paths lack the `base` of wrappers and the `parts.N` of segments.

    Args:
      model: adapted or not.

    Returns:
      `f(path of a module or parameter) -> plain path`.
    """
    # {path of a module: (the name below it that is left out, parts that it takes)}
    skips: dict[str, tuple[str, int]] = {}
    for path, module in named_modules(model):
        if isinstance(module, Wrapper):
            skips[path] = ("base", 1)
        elif isinstance(module, Segments):
            skips[path] = ("parts", 2)

    def plain(path: str) -> str:
        parts, kept, position = path.split("."), [], 0
        while position < len(parts):
            above = ".".join(parts[:position])
            word, length = skips.get(above, ("", 0))
            if length and parts[position] == word:
                position += length
                continue
            kept.append(parts[position])
            position += 1
        return ".".join(kept)

    return plain


def find_modules(
    model: nnx.Module, targets: Targets, kind: type, name: str = "targets"
) -> dict[str, Any]:
    """Finds all modules of one kind that `targets` names.

    Args:
      model: adapted or not.
      targets: see `patterns.matches`; compared with plain paths.
      kind: a class.
      name: of the parameter, for messages.

    Returns:
      {path: module}.

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
    unmatched = unmatched_by(there, targets)
    hint = tied_head(model, unmatched)
    refuse_unmatched(name, unmatched, kind.__name__, there, hint=hint)
    return found


def unmatched_by(paths: Sequence[str], targets: Targets) -> list[Targets]:
    """Lists the entries of `targets` that match none of the paths.

    Args:
      paths: plain paths.
      targets: see `patterns.entries`.

    Returns:
      The entries, in order.

    Example:
      >>> unmatched_by(["encoder.query", "encoder.key"], ["query", "valeu"])
      [['valeu']]
    """
    found = []
    for entry in entries(targets):
        if not any(matches(path, entry) for path in paths):
            found.append(entry)
    return found


def tied_head(model: nnx.Module, unmatched: Sequence[Targets]) -> str:
    """Explains why a tied head cannot be named: it is not a module of its own.

    Args:
      model: a language model, or any other.
      unmatched: entries of targets that match nothing.

    Returns:
      A sentence for an error; '' where no tied head is among the entries.
    """
    names = [entry for entry in unmatched if not callable(entry)]
    wanted = any("lm_head" in word for entry in names for word in words_of(entry))
    if not wanted or not is_tied(model):
        return ""
    return (
        f"; the head of this {type(model).__name__} is its embedding: "
        "peft.untie(model) gives it weights of its own."
    )


def is_tied(model: Any) -> bool:
    """Whether a language model's head reads the table of its token embedding.

    Args:
      model: any module.

    Returns:
      True only where the config says so and there is no head with weights of its own.
    """
    config = getattr(model, "config", None)
    tied = getattr(config, "tie_word_embeddings", False)
    return bool(tied) and hasattr(model, "head") and not hasattr(model, "lm_head")


def get_module(model: nnx.Module, path: str) -> Any:
    """Returns the module or parameter at a dotted path.

    Args:
      model: where the path starts.
      path: parts joined by dots; '' is the model itself.

    Returns:
      What is there, not a copy.
    """
    owner: Any = model
    for part in path.split(".") if path else ():
        if part.isdigit():
            owner = owner[int(part)]
        else:
            owner = getattr(owner, part) if hasattr(owner, part) else owner[part]
    return owner


def replace_module(model: nnx.Module, path: str, new: nnx.Module) -> None:
    """Puts a module in the place of another one.

    Args:
      model: changed in place.
      path: dotted, of the module that is replaced.
      new: takes its place.

    Raises:
      ValueError: the path is '', the model itself.
    """
    if not path:
        raise ValueError(
            f"the model itself, a {type(model).__name__}, cannot be wrapped: put it "
            "into a module"
        )
    parent, _, name = path.rpartition(".")
    owner = get_module(model, parent)
    if name.isdigit():
        owner[int(name)] = new
    else:
        setattr(owner, name, new)


def stack_root(model: nnx.Module, path: str) -> str | None:
    """Finds the layer that a module belongs to, or is.

    Args:
      model: any module.
      path: dotted, of a module in it.

    Returns:
      The path of the outermost stack above the module, or of the numbered entry of a
      list; None where there is neither.
    """
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        above = ".".join(parts[:length])
        module = get_module(model, above)
        if parts[length - 1].isdigit() or hasattr(module, "stacked_layers"):
            return above
    return None
