"""Modules inside a model, replaced in place.

`dict(nnx.iter_modules(model))` finds them: its paths are tuples of names and of numbers in
lists.
"""

from typing import Any

from flax import nnx


def put(owner: Any, name: str | int, module: nnx.Module) -> None:
    """Puts a module in the place of another one.

    Args:
      owner: the module, or the list of modules, that holds the old one.
      name: of the attribute, or the number in the list.
      module: the new one.

    Example:
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.layers = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0))])
      >>> model = Model()
      >>> put(model.layers, 0, nnx.Embed(5, 2, rngs=nnx.Rngs(0)))
      >>> type(model.layers[0]).__name__
      'Embed'
    """
    if isinstance(name, int):
        owner[name] = module
    else:
        setattr(owner, name, module)
