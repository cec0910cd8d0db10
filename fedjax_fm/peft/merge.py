"""Merges LoRA, DoRA and (IA)³ into the weights, and recovers the weights."""

from typing import Any

import numpy as np
from flax import nnx

from fedjax_fm.peft.linear import LinearLayer
from fedjax_fm.peft.method import parameter_paths
from fedjax_fm.peft.targets import Wrapper, get_module, named_modules, replace_module
from fedjax_fm.peft.tokens import TokenRows, fold_tokens, token_modules


def _folds(module: nnx.Module) -> bool:
    """Whether a module is a wrapper that can be merged.

    Refuses a subclass that changed what it computes but not how it is merged.
    """
    if not isinstance(module, Wrapper) or module.fold is None:
        return False
    kinds = type(module).__mro__

    def depth(*names: str) -> int:
        """How far up the classes one of these methods is defined."""
        return next(
            i
            for i, kind in enumerate(kinds)
            if any(name in vars(kind) for name in names)
        )

    # In LoRA, `fold` calls `product`, and `__call__` calls `update`.
    if depth("fold", "product") > depth("__call__", "update"):
        raise ValueError(f"{type(module).__name__} does not say how it is merged")
    return True


def _chains(model: nnx.Module) -> dict[str, tuple[list[Any], Any]]:
    """{path of the outermost: (wrappers, outermost first; the linear layer inside)}."""
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
                f"cannot merge into {here}: {type(layer).__name__} has {kind}; load "
                "dense weights"
            )
        chains[path] = (wrappers, layer)
    return chains


def _put(layer: Any, kernel: Any, bias: Any) -> None:
    """Writes kernel and bias into a linear layer."""
    layer.kernel[...] = kernel
    if bias is not None:
        layer.bias[...] = bias


def _values(layer: Any) -> tuple[Any, Any]:
    """(kernel, bias or None) of a linear layer."""
    return layer.kernel[...], None if layer.bias is None else layer.bias[...]


def merge(model: nnx.Module) -> nnx.Module:
    """Merges LoRA, DoRA, (IA)³ and trained tokens into the weights.

    Other methods stay as they are. Sums are rounded to the dtype of the weights.

    Args:
      model: an adapted model, such as `adapted.model(state.delta)`; it is not changed.

    Returns:
      A copy that computes the same, up to rounding.

    Raises:
      ValueError: a layer with quantised weights, or a wrapper that cannot be merged.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["layer"]))
      >>> type(merge(adapted.model()).layer).__name__
      'Linear'
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
    """Takes adapters out of merged weights: the inverse of `merge`.

    Args:
      merged: `merge` of a model with these adapters, perhaps trained further.
      adapted: the model whose adapters are taken out. Of its own base weights only two
        are used: the norms of columns, for DoRA, and the rows of trained tokens.

    Returns:
      A copy of `adapted` with base weights recovered from `merged`, up to the rounding
      of sums in the kernels' dtype.

    Raises:
      ValueError: as `merge`.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["layer"])).model()
      >>> again = peft.unmerge(merge(adapted), adapted)
      >>> kernel = again.layer.base.kernel[...]
      >>> bool(np.allclose(kernel, model.layer.kernel[...]))
      True
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
