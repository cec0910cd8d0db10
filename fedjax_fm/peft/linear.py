"""The linear layers that methods sit beside, in whatever form their weights are."""

import abc
from typing import Any

import jax
from flax import nnx

from fedjax_fm.peft.targets import named_modules


class LinearLayer(abc.ABC):
    """What LoRA can sit beside.

    `nnx.Linear`, or a module with `linear_shape` = (*stacked, in, out), whatever form
    its weights have.
    """

    @property
    @abc.abstractmethod
    def linear_shape(self) -> tuple[int, ...]:
        """Shape of the kernel that the module stands for; `nnx.Linear` has the kernel itself."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        return issubclass(kind, nnx.Linear) or hasattr(kind, "linear_shape")


def linear_shape(layer: Any) -> tuple[int, ...]:
    """(*stacked, in, out)."""
    return tuple(
        layer.kernel.shape if isinstance(layer, nnx.Linear) else layer.linear_shape
    )


def linears_in(module: nnx.Module) -> list[tuple[int, ...]]:
    """Shapes of all linear layers inside a module (or of itself).

    Raises:
      ValueError: there is none to take sizes from.
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
    """The width of a layer's hidden states: the smallest side of the matrices inside."""
    return min(min(shape[-2:]) for shape in linears_in(module))


def columns(vector: jax.Array) -> jax.Array:
    """A vector per output [..., out] as [..., 1, out], to be multiplied with a kernel
    [..., in, out].
    """
    return vector[..., None, :]
