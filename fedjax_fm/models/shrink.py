"""Encoders of which pruned heads and feed-forward units are taken out for good.

    attention:  sum over heads h of softmax(Q_h K_h^T) V_h W_h     W_h, rows of the output
    network:    sum over units j of act(x w_j + b_j) u_j           u_j, a row of the output

A head whose W_h, or whose V's kernel, is masked out gives the same vector for every token
(zero, or its value bias times W_h), and so does a unit: that vector goes into the bias of
the output, and all arrays lose the head's, or the unit's, rows and columns.
"""

import re
from typing import Any

import jax
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.models.modules import put
from fedjax_fm.models.shrink_layer import FAMILIES, Layer, Masks, module_at
from fedjax_fm.models.stacked import Segments


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
            layer = Layer(stack, ".".join(map(str, path)), number, masks, read)
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
        names = FAMILIES[type(stack)]
        width = module_at(stack, names.attention).kv_shape[1]
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
        if type(module) in FAMILIES
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no layers of heads and units that can be taken "
            "out; BERT, RoBERTa, DistilBERT and their classifiers have"
        )
    return found


def _n_layers(stack: Any) -> int:
    return jax.tree.leaves(nnx.state(stack))[0].shape[0]
