"""Linear layers that methods adapt, dense or quantised."""

import abc
from typing import Any

import jax
from flax import nnx

from fedjax_fm.peft.targets import named_modules


class LinearLayer(abc.ABC):
    """A layer that LoRA can adapt.

    That is `nnx.Linear`, or any module with `linear_shape` = (*stacked, in, out), for
    example one with quantised weights.
    """

    @property
    @abc.abstractmethod
    def linear_shape(self) -> tuple[int, ...]:
        """The shape of the kernel, in whatever form the module stores it."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        return issubclass(kind, nnx.Linear) or hasattr(kind, "linear_shape")


def linear_shape(layer: Any) -> tuple[int, ...]:
    """Returns the shape of a linear layer's kernel.

    Args:
      layer: a `LinearLayer`.

    Returns:
      (*stacked, in, out).
    """
    if isinstance(layer, nnx.Linear):
        return tuple(layer.kernel.shape)
    return tuple(layer.linear_shape)


def linears_in(module: nnx.Module) -> list[tuple[int, ...]]:
    """Lists the shapes of all linear layers inside a module, or of the module itself.

    Args:
      module: any.

    Returns:
      (*stacked, in, out) of each.

    Raises:
      ValueError: there is none.
    """
    shapes = [
        linear_shape(layer)
        for _, layer in named_modules(module)
        if isinstance(layer, LinearLayer)
    ]
    if not shapes:
        raise ValueError(
            f"{type(module).__name__} has no linear layer inside to take its sizes from"
        )
    return shapes


def width_of(module: nnx.Module) -> int:
    """Returns the width of a layer's hidden states.

    Args:
      module: with linear layers inside.

    Returns:
      The smallest side of their matrices.

    Raises:
      ValueError: there is no linear layer inside.
    """
    sides = [side for shape in linears_in(module) for side in shape[-2:]]
    return min(sides)


def columns(vector: jax.Array) -> jax.Array:
    """Reshapes one number for each output so that it multiplies a kernel's columns.

    Args:
      vector: f32[..., out].

    Returns:
      f32[..., 1, out], for kernels [..., in, out].
    """
    return vector[..., None, :]
