"""Adapters into the weights, and out again: LoRA, DoRA and (IA)³."""

from typing import Any

import numpy as np
from flax import nnx

from fedjax_fm.peft.linear import LinearLayer
from fedjax_fm.peft.method import parameter_paths
from fedjax_fm.peft.targets import Wrapper, get_module, named_modules, replace_module
from fedjax_fm.peft.tokens import TokenRows, fold_tokens, token_modules


def _folds(module: nnx.Module) -> bool:
    """Whether a wrapper says how it is merged.

    Refuses one that changed what it computes but not how it merges.
    """
    if not isinstance(module, Wrapper) or module.fold is None:
        return False
    kinds = type(module).__mro__

    def depth(*names):
        return next(
            i
            for i, kind in enumerate(kinds)
            if any(name in vars(kind) for name in names)
        )

    # `product` is the part of LoRA's fold that follows from `update`, the part of its call.
    if depth("fold", "product") > depth("__call__", "update"):
        raise ValueError(f"{type(module).__name__} does not say how it is merged")
    return True


def _chains(model: nnx.Module) -> dict[str, tuple[list[Any], Any]]:
    """{path of the outermost: (wrappers that fold, outermost first; the linear layer inside)}."""
    chains, inner = {}, set()
    for path, module in sorted(named_modules(model)):
        if path in inner or not _folds(module):
            continue
        wrappers, here, layer = [], path, module
        while isinstance(layer, Wrapper) and _folds(layer):
            inner.add(here)
            wrappers.append(layer)
            here, layer = f"{here}.base", layer.base
        if not isinstance(layer, nnx.Linear):
            kind = (
                "a wrapper that cannot be merged"
                if isinstance(layer, Wrapper)
                else "no dense kernel"
            )
            if isinstance(layer, LinearLayer):
                kind = "quantised weights, which hold no sums"
            raise ValueError(
                f"cannot merge into {here}: {type(layer).__name__} has {kind}; load dense weights"
            )
        chains[path] = (wrappers, layer)
    return chains


def _put(layer: Any, kernel: Any, bias: Any) -> None:
    layer.kernel[...] = kernel
    if bias is not None:
        layer.bias[...] = bias


def _values(layer: Any) -> tuple[Any, Any]:
    return layer.kernel[...], None if layer.bias is None else layer.bias[...]


def merge(model: nnx.Module) -> nnx.Module:
    """A copy of an adapted model with its LoRA, DoRA and (IA)³ in the kernels, and
    trained tokens in their tables; other methods stay as they are.

    The sums are rounded to the kernels' dtype.

    Raises:
      ValueError: a layer whose weights are quantised, or a wrapper that cannot be merged.
    """
    model = nnx.clone(model)
    for path, (wrappers, layer) in _chains(model).items():
        values = _values(layer)
        for wrapper in reversed(wrappers):
            values = wrapper.fold(*values)
        _put(layer, *values)
        replace_module(model, path, layer)
    fold_tokens(model)
    return model


def unmerge(merged: nnx.Module, adapted: nnx.Module) -> nnx.Module:
    """The adapted model again, its base weights recovered from `merged`.

    Args:
      merged: `merge` of a model with these adapters, perhaps trained further.
      adapted: gives the adapters; of its base only the column norms are used, by DoRA,
        and the rows that trained tokens stand for.

    Exact up to the rounding of the sums in the kernels' dtype.
    """
    result = nnx.clone(adapted)
    there, chains, updates = parameter_paths(merged), _chains(result), []
    for path, (wrappers, layer) in chains.items():
        values = _values(get_module(merged, path))
        for wrapper in wrappers:
            values = wrapper.unfold(*values)
        updates.append((layer, values))
    tokens = token_modules(result)
    for path, module in tokens.items():
        ids = np.asarray(module.ids)
        table = get_module(merged, path).embedding[...]
        updates.append((module, table.at[ids].set(module.base.embedding[...][ids])))
    inside = tuple(f"{path}." for path in (*chains, *tokens))
    for path, variable in parameter_paths(result).items():
        if not ".".join(path).startswith(inside):
            variable[...] = there[path][...]
    for layer, values in updates:
        if isinstance(layer, TokenRows):
            layer.base.embedding[...] = values
        else:
            _put(layer, *values)
    return result
