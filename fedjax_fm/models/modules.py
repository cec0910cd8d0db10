"""Modules inside a model, replaced in place, and arrays of a model that stay as they are.

`dict(nnx.iter_modules(model))` finds the modules: its paths are tuples of names, and of
numbers in lists.
"""

from typing import Any

from flax import nnx


class Fixed(nnx.Variable):
    """An array of a checkpoint that no method trains, full tuning neither.

    It is read, and written with the whole model, under its own name.
    """


def put(owner: Any, name: str | int, module: nnx.Module) -> None:
    """Puts a module in the place of another one.

    Args:
      owner: the module, or the list of modules, that holds the old one.
      name: of the attribute, or the number in the list.
      module: the new one.

    Example:
      >>> layers = nnx.List([nnx.Module()])
      >>> put(layers, 0, nnx.Dict())
      >>> type(layers[0]).__name__
      'Dict'
    """
    if isinstance(name, int):
        owner[name] = module
    else:
        setattr(owner, name, module)
