"""Which columns of a batch a model is called with, and what is said when they do not fit."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fedjax_fm.models.randomness import randomness

KEY = "key"  # the parameter through which a model is given what its dropout draws from


def check_adapted(adapted: Any) -> None:
    """Raises TypeError unless a model can be made of `adapted`."""
    if not callable(getattr(adapted, "model", None)):
        raise TypeError(
            "expected adapted from peft.apply(model, method), got "
            f"{type(adapted).__name__}; for a plain function use tasks.from_logits(fn)"
        )


def check_names(name: str, names: Any) -> None:
    """Raises TypeError unless `names` is None or names of columns."""
    if names is None:
        return
    if isinstance(names, str) or not all(isinstance(one, str) for one in names):
        raise TypeError(
            f"expected {name} as a list of names of columns, got {name}={names!r}"
        )


def need(batch: Mapping[str, Any], names: Sequence[str], who: str) -> None:
    """Raises ValueError naming the columns that `who` needs and those that the batch has."""
    missing = [name for name in names if name not in batch]
    if missing:
        raise ValueError(
            f"{who} needs the columns {', '.join(names)}; the batch has "
            f"{', '.join(sorted(batch)) or 'none'}: {', '.join(missing)} missing"
        )


def call_model(
    model: Callable[..., Any],
    batch: Mapping[str, jax.Array],
    targets: Sequence[str],
    inputs: Sequence[str] | None,
    key: jax.Array | None,
) -> Any:
    """Calls the model with the batch's columns as its parameters of the same names.

    Args:
      model: a module.
      batch: {column: [B, ...]}.
      targets: columns that the loss reads, not the model.
      inputs: columns that the model is given; None: all but the targets.
      key: of dropout; None: there is none.

    A single column goes to a model of a single parameter whatever their names are.

    Raises:
      ValueError: a column that the model does not take, or a parameter without a column.
    """
    names = (
        [name for name in batch if name not in targets]
        if inputs is None
        else list(inputs)
    )
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
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            _check_fit(names, takes, parameters, who)
        return model(**{name: batch[name] for name in names}, **more)


def _takes_one(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether exactly one argument has to be given."""
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
    required = [
        name
        for name in parameters
        if name in takes and parameters[name].default is inspect.Parameter.empty
    ]
    missing = [name for name in required if name not in names]
    if missing:
        raise ValueError(
            f"{who} needs the columns {', '.join(required)}; the batch has "
            f"{', '.join(sorted(names)) or 'none'}: {', '.join(missing)} missing"
        )
    unknown = [name for name in names if name not in takes]
    if unknown:
        raise ValueError(
            f"{who} takes {', '.join(sorted(takes))}, not {', '.join(unknown)}, a "
            "column of the batch: leave it out of the data, or name the model's "
            "columns, inputs=[...]"
        )
