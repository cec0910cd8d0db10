"""Bottleneck adapters, after or beside parts of a model.

References:
  Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly
  (2019). Parameter-Efficient Transfer Learning for NLP. arXiv 1902.00751.
  He, Zhou, Ma, Berg-Kirkpatrick, Neubig (2021). Towards a Unified View of
  Parameter-Efficient Transfer Learning. arXiv 2110.04366 (parallel form).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.checks import choice, flag, real, whole
from fedjax_fm.models.activations import ACTIVATIONS
from fedjax_fm.peft.linear import linear_shape, linears_in, width_of
from fedjax_fm.peft.method import Method, head_paths, parameter_paths
from fedjax_fm.peft.patterns import HEADS, AnyOf, Targets, check_names, check_targets
from fedjax_fm.peft.places import find_linears
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import (
    Wrapper,
    find_modules,
    named_modules,
    replace_module,
    stack_root,
)

# Output projections of attention and feed-forward networks, as Hugging Face names them.
OUTPUTS = AnyOf(
    (
        *("attention.output.dense", "layer.output.dense"),  # BERT, RoBERTa, ViT
        *("o_proj", "down_proj"),  # LLaMA
        *("attn.c_proj", "mlp.c_proj"),  # GPT-2
        *("out_lin", "ffn.lin2"),  # DistilBERT
        *("attention.dense", "ffn_output"),  # ALBERT
        *("SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"),  # T5
        *("self_attn.out_proj", "mlp.fc2"),  # CLIP
        *("encoder_attn.out_proj", "layers.fc2"),  # Whisper
    )
)
# Whole feed-forward networks, and BERT's residual output, whose second argument is the
# input of the network.
SUBLAYERS = AnyOf(("mlp", "DenseReluDense", "ffn", "layer.output"))


class Bottleneck(nnx.Module):
    """A network of one narrow hidden layer: W_up act(W_down x + b_down) + b_up.

    Args:
      stacked: leading axes of the weights, for the layers of a stack; () for none.
      width: d of the hidden states.
      bottleneck: m, the width in the middle.
      act: name of the activation.
      std: standard deviation of the initial weights, a normal distribution that is cut
        at two standard deviations.
      key: of the initial weights.
    """

    def __init__(
        self,
        stacked: tuple[int, ...],
        width: int,
        bottleneck: int,
        act: str,
        std: float,
        key: jax.Array,
    ):
        down, up = jax.random.split(key)

        def draw(key: jax.Array, *shape: int) -> jax.Array:
            whole_shape = (*stacked, *shape)
            return std * jax.random.truncated_normal(
                key, -2, 2, whole_shape, dtype=jnp.float32
            )

        self.act = act
        self.down = nnx.Param(draw(down, width, bottleneck))
        self.down_bias = nnx.Param(jnp.zeros((*stacked, bottleneck)))
        self.up = nnx.Param(draw(up, bottleneck, width))
        self.up_bias = nnx.Param(jnp.zeros((*stacked, width)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[..., d] -> f32[..., d]."""
        inner = ACTIVATIONS[self.act](x @ self.down[...] + self.down_bias[...])
        return inner @ self.up[...] + self.up_bias[...]


class AdapterLinear(Wrapper):
    """A linear layer with an adapter behind it: y + adapter(y) with y = base(x).

    Args:
      base: the linear layer.
      adapter: of the width of its output.
    """

    def __init__(self, base: Any, adapter: Bottleneck):
        self.base, self.adapter = base, adapter

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        y = self.base(x)
        return (y + self.adapter(y)).astype(y.dtype)


class ParallelAdapter(Wrapper):
    """A module with an adapter beside it: base(x) + s adapter(x).

    Some bases are called with (y, residual) and normalise the sum of both, where the
    residual is the input of the network that gave y. Then s adapter(residual) is added
    to that sum.

    Args:
      base: the module.
      adapter: of the width of its input and output.
      scale: s.
    """

    def __init__(self, base: Any, adapter: Bottleneck, scale: float):
        self.base, self.adapter, self.scale = base, adapter, scale

    def __call__(self, x: jax.Array, *residual: jax.Array) -> jax.Array:
        """[..., d] -> [..., d]."""
        read = residual[0] if residual else x
        added = (self.scale * self.adapter(read)).astype(read.dtype)
        return self.base(x, read + added) if residual else self.base(x) + added


def _checked(
    bottleneck: int, act: str, std: float, targets: Targets, modules_to_save: Any
) -> None:
    """Refuses arguments that make no sense."""
    whole("bottleneck", bottleneck, least=1)
    choice("act", act, ACTIVATIONS)
    real("std", std, least=0)
    check_targets("targets", targets)
    check_names("modules_to_save", modules_to_save)


def _own(path: str, adapter: Bottleneck) -> set[tuple]:
    """Paths of the adapter's parameters, inside of the wrapper at `path`."""
    above = (*path.split("."), "adapter")
    return {(*above, *name) for name in parameter_paths(adapter)}


def _norms_beside(model: nnx.Module, paths: set[str]) -> set[tuple]:
    """Parameters of the normalisations in the layers in which the paths lie.

    Those of the whole model where it has no layers.
    """
    roots = {stack_root(model, path) for path in paths}
    norms = [
        path
        for path, module in named_modules(model)
        if isinstance(module, nnx.LayerNorm | nnx.RMSNorm)
    ]
    starts = tuple(f"{root}." for root in roots)
    inside = {path for path in norms if None in roots or path.startswith(starts)}
    return {path for path in parameter_paths(model) if ".".join(path[:-1]) in inside}


@refuses_pefts_words
def houlsby(
    bottleneck: int,
    *,
    targets: Targets = OUTPUTS,
    act: str = "gelu",
    std: float = 1e-2,
    norms: bool = True,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """Adapters of Houlsby et al.: a bottleneck after each of the chosen linear layers.

        h <- h + W_up act(W_down h + b_down) + b_up

    By default they follow the output projections of attention and of the feed-forward
    network, before the residual sum. A target has 2 d m + d + m trained numbers.

    Args:
      bottleneck: m, the width in the middle.
      targets: which linear layers: a regular expression on the dotted module path, or a
        list of path endings. The default lists the output projections under Hugging
        Face's names.
      act: the activation, a key of `models.activations.ACTIVATIONS`.
      std: of the initial weights, a normal distribution that is cut at two standard
        deviations. With 0, W_up and W_down have no gradient.
      norms: whether the layers' normalisations are trained, too, as in the paper.
      modules_to_save: modules that are trained in full; by default the head, where the
        model has one.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for names that the
        model does not have.

    References:
      Houlsby et al. (2019), arXiv 1902.00751, section 2.1.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(o_proj=nnx.Linear(6, 4, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.houlsby(2))
      >>> delta = nnx.to_pure_dict(adapted.delta)
      >>> jax.tree.map(jnp.shape, delta["o_proj"]["adapter"])
      {'down': (4, 2), 'down_bias': (2,), 'up': (2, 4), 'up_bias': (4,)}
    """
    _checked(bottleneck, act, std, targets=targets, modules_to_save=modules_to_save)
    flag("norms", norms)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable, found = set(), find_linears(model, targets, modules_to_save)
        for number, (path, base) in enumerate(sorted(found.items())):
            *stacked, _, width = linear_shape(base)
            adapter = Bottleneck(
                stacked=tuple(stacked),
                width=width,
                bottleneck=bottleneck,
                act=act,
                std=std,
                key=jax.random.fold_in(key, number),
            )
            replace_module(model, path, AdapterLinear(base, adapter))
            trainable |= _own(path, adapter)
        if norms:
            trainable |= _norms_beside(model, set(found))
        return trainable | head_paths(model, modules_to_save)

    return Method("adapter", install)


@refuses_pefts_words
def parallel_adapter(
    bottleneck: int,
    *,
    targets: Targets = SUBLAYERS,
    scale: float = 4.0,
    act: str = "relu",
    std: float = 1e-2,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """Parallel adapters of He et al.: a bottleneck beside each of the chosen sublayers.

        out <- f(x) + s (W_up act(W_down x + b_down) + b_up)

    By default they are beside the feed-forward networks. W_up starts at zero, so that
    the model is unchanged at first. A target has 2 d m + d + m trained numbers.

    Args:
      bottleneck: m, the width in the middle.
      targets: which modules: a regular expression on the dotted module path, or a list
        of path endings. They map hidden states [..., d] to the same width; linear
        layers may be among them. The default lists feed-forward networks under Hugging
        Face's names.
      scale: s, 4 as in the paper.
      act: the activation, a key of `models.activations.ACTIVATIONS`.
      std: of the initial W_down, a normal distribution that is cut at two standard
        deviations.
      modules_to_save: modules that are trained in full; by default the head, where the
        model has one.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for names that the
        model does not have.

    References:
      He, Zhou, Ma, Berg-Kirkpatrick, Neubig (2021), arXiv 2110.04366.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(mlp=nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.parallel_adapter(2))
      >>> delta = nnx.to_pure_dict(adapted.delta)
      >>> jax.tree.map(jnp.shape, delta["mlp"]["adapter"])
      {'down': (4, 2), 'down_bias': (2,), 'up': (2, 4), 'up_bias': (4,)}
    """
    _checked(bottleneck, act, std, targets=targets, modules_to_save=modules_to_save)
    real("scale", scale)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set()
        found = find_modules(model, targets, nnx.Module)
        for number, (path, base) in enumerate(sorted(found.items())):
            stacked = linears_in(base)[0][:-2]
            adapter = Bottleneck(
                stacked=stacked,
                width=width_of(base),
                bottleneck=bottleneck,
                act=act,
                std=std,
                key=jax.random.fold_in(key, number),
            )
            adapter.up[...] = jnp.zeros_like(adapter.up[...])
            replace_module(model, path, ParallelAdapter(base, adapter, scale))
            trainable |= _own(path, adapter)
        return trainable | head_paths(model, modules_to_save)

    return Method("parallel_adapter", install)
