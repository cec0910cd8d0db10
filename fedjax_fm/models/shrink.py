"""Encoders of which pruned heads and feed-forward units are taken out for good.

    attention:  sum over heads h of softmax(Q_h K_h^T) V_h W_h     W_h, rows of the output
    network:    sum over units j of act(x w_j + b_j) u_j           u_j, a row of the output

A head whose W_h, or whose V's kernel, is masked out gives the same vector for every token
(zero, or its value bias times W_h), and so does a unit: that vector goes into the bias of
the output, and all arrays lose the head's, or the unit's, rows and columns.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.models.activations import ACTIVATIONS
from fedjax_fm.models.bert import BertLayer
from fedjax_fm.models.distilbert import DistilBertLayer
from fedjax_fm.models.modules import put
from fedjax_fm.models.stacked import Segments


class _Names(NamedTuple):
    """Dotted paths, inside a layer, of what is cut."""

    attention: str  # the module that knows the number of heads
    query: str
    key: str
    value: str
    output: str
    network: str  # the module that knows the activation
    wide: str
    narrow: str


_FAMILIES: dict[type, _Names] = {
    BertLayer: _Names(
        attention="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output="attention.output.dense",
        network="intermediate",
        wide="intermediate.dense",
        narrow="output.dense",
    ),
    DistilBertLayer: _Names(
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


def shrunk(model: Any, masks: Masks, *, filled: bool = False) -> Any:
    """A smaller encoder that computes what the masked one does.

    Really smaller: a head stays where some of its value's columns and some of its
    output's rows do, a unit likewise; all others leave the arrays. Layers may come to
    differ in size, so each becomes a stack of its own, which takes longer to compile.
    The first head, or unit, of a layer stays where none would. What is pruned inside of
    a head that stays is zero there.

    Args:
      model: a BERT, RoBERTa or DistilBERT, or a classifier on one, without adapters
        (`peft.merge` takes them in).
      masks: bool, by the dotted path of a kernel in the model; kernels without one are
        whole. Those of a method's server state, for example.
      filled: whether heads and units that stay get back all their weights, as the
        paper's "filled" models, to be trained further.

    Returns:
      A new model; `model` stays as it is. It has no counterpart in Hugging Face's
      formats.

    Raises:
      TypeError: `filled` is no flag, or a layer has adapters or a prefix.
      ValueError: no such encoder, or a mask that fits no kernel.

    References:
      Lagunas et al. 2021, arXiv 2109.04838.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1}
      >>> sizes |= {"num_attention_heads": 2, "intermediate_size": 8}
      >>> model = models.BertModel(models.BertConfig(**sizes), nnx.Rngs(0))
      >>> units = jnp.arange(8) < 3
      >>> path = "encoder.layer.intermediate.dense.kernel"
      >>> small = models.shrunk(model, {path: jnp.broadcast_to(units, (1, 4, 8))})
      >>> small.encoder.layer.parts[0].intermediate.dense.kernel.shape
      (1, 4, 3)
    """
    checks.flag("filled", filled)
    graphdef, state = nnx.split(model)
    copy = nnx.merge(graphdef, state)
    read = set()
    for path, stack in _stacks(copy):
        parts = []
        for number in range(_n_layers(stack)):
            layer = _Layer(stack, ".".join(map(str, path)), number, masks, read)
            parts.append(layer.cut(filled))
        owner = copy
        for name in path[:-1]:
            owner = getattr(owner, name)
        put(owner, path[-1], Segments(parts))
    unread = sorted(set(masks) - read)
    if unread:
        raise ValueError(
            f"the mask {unread[0]!r} belongs to no kernel of a head or unit of "
            f"{type(model).__name__}; leave it out, and apply it with sparsity.masked"
        )
    return copy


def unit_blocks(model: Any) -> dict[str, tuple[int, int]]:
    """Blocks of heads and of feed-forward units, for `movement_pruning(blocks=...)`.

    Args:
      model: as for `shrunk`.

    Returns:
      {regular expression of a kernel: (rows, columns)}, 0 for the whole axis.

    Raises:
      ValueError: no such encoder.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1}
      >>> sizes |= {"num_attention_heads": 2, "intermediate_size": 8}
      >>> model = models.BertModel(models.BertConfig(**sizes), nnx.Rngs(0))
      >>> sorted(models.unit_blocks(model).values())
      [(0, 1), (0, 2), (0, 2), (0, 2), (1, 0), (2, 0)]
    """
    blocks = {}
    for path, stack in _stacks(model):
        names = _FAMILIES[type(stack)]
        width = _module(stack, names.attention).kv_shape[1]
        sides = {
            names.query: (0, width),
            names.key: (0, width),
            names.value: (0, width),
            names.output: (width, 0),
            names.wide: (0, 1),
            names.narrow: (1, 0),
        }
        before = ".".join(map(str, path))
        for name, block in sides.items():
            blocks[f"^{re.escape(f'{before}.{name}.kernel')}$"] = block
    return blocks


def _stacks(model: Any) -> list[tuple[tuple, Any]]:
    """(path, stack) of all stacked layers that can be cut."""
    found = [
        (path, module)
        for path, module in nnx.iter_modules(model)
        if type(module) in _FAMILIES
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no layers of heads and units that can be taken "
            "out; BERT, RoBERTa, DistilBERT and their classifiers have"
        )
    return found


def _module(layer: Any, path: str) -> Any:
    """A module inside a layer."""
    for name in path.split("."):
        layer = getattr(layer, name)
    return layer


def _n_layers(stack: Any) -> int:
    return jax.tree.leaves(nnx.state(stack))[0].shape[0]


class _Layer:
    """One layer of a stack, its masks, and what is cut out of it."""

    def __init__(self, stack: Any, path: str, number: int, masks: Masks, read: set):
        graphdef, state = nnx.split(stack)
        own = jax.tree.map(lambda x: x[number : number + 1], state)
        self.module = nnx.merge(graphdef, own)
        self.module.stacked_layers = 1
        self.names = _FAMILIES[type(stack)]
        self.path, self.number, self.masks, self.read = path, number, masks, read
        attention = _module(self.module, self.names.attention)
        if attention.prefix is not None:
            raise TypeError(f"{path} has a prefix, which heads that leave would lose")

    def cut(self, filled: bool) -> Any:
        """The layer, a stack of one, without what is masked out."""
        names = self.names
        attention = _module(self.module, names.attention)
        heads, width = attention.kv_shape
        alive = self._alive(names.value, names.output, heads)
        rows = np.repeat(alive, width)
        constant = self._linear(names.value).bias[...]
        self._remove(names.output, constant, rows, filled)
        for name in (names.query, names.key, names.value):
            self._keep_columns(name, rows, filled)
        attention.heads = int(alive.sum())
        attention.kv_shape = (attention.heads, width)

        units = self._linear(names.wide).kernel.shape[-1]
        alive = self._alive(names.wide, names.narrow, units)
        activation = ACTIVATIONS[_module(self.module, names.network).act]
        constant = activation(self._linear(names.wide).bias[...])
        self._remove(names.narrow, constant, alive, filled)
        self._keep_columns(names.wide, alive, filled)
        return self.module

    def _linear(self, name: str) -> nnx.Linear:
        """A linear layer, with no adapter around it."""
        linear = _module(self.module, name)
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
        linear.bias = nnx.Param(linear.bias[...] + given)
        linear.kernel = nnx.Param((kernel if filled else masked)[:, kept])
        linear.in_features = int(kept.sum())

    def _keep_columns(self, name: str, kept: np.ndarray, filled: bool) -> None:
        """Columns of the layer before."""
        linear, mask = self._linear(name), self._mask(name)
        kernel = linear.kernel[...]
        masked = kernel if filled else jnp.where(mask, kernel, 0)
        linear.kernel = nnx.Param(masked[..., kept])
        linear.bias = nnx.Param(linear.bias[...][..., kept])
        linear.out_features = int(kept.sum())
