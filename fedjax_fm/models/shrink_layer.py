"""One encoder layer without the heads and units that are masked out.

Lagunas et al., Block Pruning For Faster Transformers, 2021, arXiv 2109.04838.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS
from fedjax_fm.models.bert import BertLayer
from fedjax_fm.models.distilbert import DistilBertLayer


class LayerNames(NamedTuple):
    """Dotted paths, inside a layer, of what is cut."""

    attention: str  # the module that knows the number of heads
    query: str
    key: str
    value: str
    output: str
    network: str  # the module that knows the activation
    wide: str
    narrow: str


FAMILIES: dict[type, LayerNames] = {
    BertLayer: LayerNames(
        attention="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output="attention.output.dense",
        network="intermediate",
        wide="intermediate.dense",
        narrow="output.dense",
    ),
    DistilBertLayer: LayerNames(
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        network="ffn",
        wide="ffn.lin1",
        narrow="ffn.lin2",
    ),
}

Masks = Mapping[str, jax.Array | np.ndarray]


def module_at(layer: Any, path: str) -> Any:
    """A module inside a layer.

    Args:
      layer: where the path starts.
      path: dotted.
    """
    for name in path.split("."):
        layer = getattr(layer, name)
    return layer


class Layer:
    """One layer of a stack, its masks, and what is cut out of it.

    Args:
      stack: the stacked module.
      path: its dotted path in the model.
      number: of the layer.
      masks: of the whole model.
      read: paths of the masks that were read so far; grows.
    """

    def __init__(self, stack: Any, path: str, number: int, masks: Masks, read: set):
        graphdef, state = nnx.split(stack)
        own = jax.tree.map(lambda x: x[number : number + 1], state)
        self.module = nnx.merge(graphdef, own)
        self.module.stacked_layers = 1
        self.names = FAMILIES[type(stack)]
        self.path, self.number, self.masks, self.read = path, number, masks, read
        attention = module_at(self.module, self.names.attention)
        if attention.prefix is not None:
            raise TypeError(f"{path} has a prefix, which heads that leave would lose")

    def cut(self, filled: bool) -> Any:
        """The layer, a stack of one, without what is masked out.

        Args:
          filled: whether what stays gets back all its weights.
        """
        names = self.names
        attention = module_at(self.module, names.attention)
        heads, width = attention.kv_shape
        alive = self._alive(names.value, names.output, heads)
        rows = np.repeat(alive, width)
        constant = _bias(self._linear(names.value))
        self._remove(names.output, constant, rows, filled)
        for name in (names.query, names.key, names.value):
            self._keep_columns(name, rows, filled)
        attention.heads = int(alive.sum())
        attention.kv_shape = (attention.heads, width)

        units = self._linear(names.wide).kernel.shape[-1]
        alive = self._alive(names.wide, names.narrow, units)
        activation = ACTIVATIONS[module_at(self.module, names.network).act]
        constant = activation(_bias(self._linear(names.wide)))
        self._remove(names.narrow, constant, alive, filled)
        self._keep_columns(names.wide, alive, filled)
        return self.module

    def _linear(self, name: str) -> nnx.Linear:
        """A linear layer, with no adapter around it."""
        linear = module_at(self.module, name)
        if type(linear) is not nnx.Linear:
            raise TypeError(
                f"{self.path}.{name} is a {type(linear).__name__}; merge adapters and "
                "dequantise before heads and units are taken out"
            )
        return linear

    def _mask(self, name: str) -> np.ndarray:
        """bool[in, out], of this layer."""
        path = f"{self.path}.{name}.kernel"
        shape = self._linear(name).kernel.shape[1:]
        if path not in self.masks:
            return np.ones(shape, bool)
        mask = np.asarray(self.masks[path])
        if mask.dtype != bool or mask.shape[1:] != shape or self.number >= len(mask):
            raise ValueError(
                f"the mask {path!r} is {mask.dtype}{list(mask.shape)}, expected "
                f"bool[layers, {shape[0]}, {shape[1]}]"
            )
        self.read.add(path)
        return mask[self.number]

    def _alive(self, before: str, after: str, n: int) -> np.ndarray:
        """bool[n]: units that something reaches and that reach something; one at least."""
        columns, rows = self._mask(before), self._mask(after)
        reached = columns.reshape(columns.shape[0], n, -1).any((0, 2))
        reaches = rows.reshape(n, -1).any(1)
        alive = np.asarray(reached & reaches)
        is_first = np.arange(n) == 0
        return alive if alive.any() else is_first

    def _remove(
        self, name: str, constant: jax.Array, kept: np.ndarray, filled: bool
    ) -> None:
        """Rows of the layer behind; what those that go would give is in its bias."""
        linear, mask = self._linear(name), self._mask(name)
        kernel = linear.kernel[...]
        masked = jnp.where(mask, kernel, 0)
        given = jnp.einsum("li,lio->lo", constant[:, ~kept], masked[:, ~kept])
        linear.bias = nnx.Param(_bias(linear) + given)
        linear.kernel = nnx.Param((kernel if filled else masked)[:, kept])
        linear.in_features = int(kept.sum())

    def _keep_columns(self, name: str, kept: np.ndarray, filled: bool) -> None:
        """Columns of the layer before."""
        linear, mask = self._linear(name), self._mask(name)
        kernel = linear.kernel[...]
        masked = kernel if filled else jnp.where(mask, kernel, 0)
        linear.kernel = nnx.Param(masked[..., kept])
        linear.bias = nnx.Param(_bias(linear)[..., kept])
        linear.out_features = int(kept.sum())


def _bias(linear: nnx.Linear) -> jax.Array:
    """The bias, into which goes what removed units gave."""
    if linear.bias is None:
        raise ValueError(
            "expected layers with biases, which take what removed units gave"
        )
    return linear.bias[...]
