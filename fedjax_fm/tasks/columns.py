"""Calls models with the columns of a batch, and explains columns that do not fit."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fedjax_fm.models.randomness import randomness

KEY = "key"  # the parameter through which a model is given what its dropout draws from


def check_adapted(adapted: Any) -> None:
    """Raises TypeError unless `adapted` comes from `peft.apply`.

    Args:
      adapted: anything with a method `model`.
    """
    if not callable(getattr(adapted, "model", None)):
        raise TypeError(
            "expected adapted from peft.apply(model, method), got "
            f"{type(adapted).__name__}; for a plain function use tasks.from_logits(fn)"
        )


def check_names(name: str, names: Any) -> None:
    """Raises TypeError unless `names` is None or a list of columns.

    Args:
      name: of the parameter, for the message.
      names: its value.
    """
    if names is None:
        return
    single = isinstance(names, str)
    if single or not all(isinstance(one, str) for one in names):
        raise TypeError(
            f"expected {name} as a list of names of columns, got {name}={names!r}"
        )


def need(batch: Mapping[str, Any], names: Sequence[str], who: str) -> None:
    """Raises ValueError unless the batch has the columns that are needed.

    Args:
      batch: {column: [B, ...]}.
      names: columns that are needed.
      who: needs them, for the message.
    """
    missing = [name for name in names if name not in batch]
    if missing:
        raise ValueError(_said_missing(who, names, sorted(batch), missing))


def call_model(
    model: Callable[..., Any],
    batch: Mapping[str, jax.Array],
    targets: Sequence[str],
    inputs: Sequence[str] | None,
    key: jax.Array | None,
) -> Any:
    """Calls the model with columns of the batch as parameters of the same names.

    A single column is passed to a model of a single parameter whatever their names are.

    Args:
      model: a module.
      batch: {column: [B, ...]}.
      targets: columns that the loss reads, not the model.
      inputs: columns that the model is given; None: all but the targets.
      key: for dropout; None: no dropout.

    Returns:
      What the model returns.

    Raises:
      ValueError: a column that the model does not take, or a parameter without a
        column.
    """
    if inputs is None:
        inputs = [name for name in batch if name not in targets]
    names = list(inputs)
    who = f"the model {type(model).__name__}"
    need(batch, names, who)
    parameters = inspect.signature(model).parameters
    takes = {
        name for name, one in parameters.items() if one.kind is not one.VAR_POSITIONAL
    }
    takes -= {KEY}
    more = {KEY: key} if KEY in parameters else {}
    with randomness(key):
        if len(names) == 1 and names[0] not in takes and _takes_one(parameters):
            return model(batch[names[0]], **more)
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        if not takes_any:
            _check_fit(names, takes, parameters, who)
        return model(**{name: batch[name] for name in names}, **more)


def _takes_one(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether exactly one argument must be given."""
    required = [
        one
        for one in parameters.values()
        if one.kind is one.VAR_POSITIONAL
        or (one.default is one.empty and one.kind is not one.VAR_KEYWORD)
    ]
    return len(required) == 1


def _check_fit(
    names: Sequence[str],
    takes: set[str],
    parameters: Mapping[str, inspect.Parameter],
    who: str,
) -> None:
    """Raises ValueError unless columns and parameters have the same names."""
    required = [
        name
        for name in parameters
        if name in takes and parameters[name].default is inspect.Parameter.empty
    ]
    missing = [name for name in required if name not in names]
    if missing:
        raise ValueError(_said_missing(who, required, sorted(names), missing))
    unknown = [name for name in names if name not in takes]
    if unknown:
        taken = ", ".join(sorted(takes))
        raise ValueError(
            f"{who} takes {taken}, not {', '.join(unknown)}, a "
            "column of the batch: leave it out of the data, or name the model's "
            "columns, inputs=[...]"
        )


def _said_missing(
    who: str, needed: Sequence[str], present: Sequence[str], missing: Sequence[str]
) -> str:
    """The message for columns that are missing."""
    has = ", ".join(present) or "none"
    return (
        f"{who} needs the columns {', '.join(needed)}; the batch has "
        f"{has}: {', '.join(missing)} missing"
    )
