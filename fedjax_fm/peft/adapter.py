"""Adapters: Parameter-Efficient Transfer Learning for NLP.

Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly,
2019, arXiv 1902.00751. After the output projection of attention and of the feed-forward
network, before the residual sum:

    h <- h + W_up act(W_down h + b_down) + b_up

Parallel form: He, Zhou, Ma, Berg-Kirkpatrick, Neubig, 2021, arXiv 2110.04366: out <-
f(x) + s W_up act(W_down x).
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
    )
)
# Whole feed-forward networks, and BERT's residual output, whose second argument is what
# the network read.
SUBLAYERS = AnyOf(("mlp", "DenseReluDense", "ffn", "layer.output"))


class Bottleneck(nnx.Module):
    """W_up act(W_down x + b_down) + b_up, [..., d] -> [..., d].

    A leading axis of the weights holds a stack's layers.
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

        def draw(key, *shape):
            return std * jax.random.truncated_normal(
                key, -2, 2, (*stacked, *shape), jnp.float32
            )

        self.act = act
        self.down = nnx.Param(draw(down, width, bottleneck))
        self.down_bias = nnx.Param(jnp.zeros((*stacked, bottleneck)))
        self.up = nnx.Param(draw(up, bottleneck, width))
        self.up_bias = nnx.Param(jnp.zeros((*stacked, width)))

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = ACTIVATIONS[self.act](x @ self.down[...] + self.down_bias[...])
        return inner @ self.up[...] + self.up_bias[...]


class AdapterLinear(Wrapper):
    """y + adapter(y) with y = base(x)."""

    def __init__(self, base: Any, adapter: Bottleneck):
        self.base, self.adapter = base, adapter

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.base(x)
        return (y + self.adapter(y)).astype(y.dtype)


class ParallelAdapter(Wrapper):
    """base(x) + s adapter(x).

    A base that is called with (y, residual) and normalises their sum, where the
    residual is what the network before it has read, gets s adapter(residual) into that
    sum.
    """

    def __init__(self, base: Any, adapter: Bottleneck, scale: float):
        self.base, self.adapter, self.scale = base, adapter, scale

    def __call__(self, x: jax.Array, *residual: jax.Array) -> jax.Array:
        read = residual[0] if residual else x
        added = (self.scale * self.adapter(read)).astype(read.dtype)
        return self.base(x, read + added) if residual else self.base(x) + added


def _checked(
    bottleneck: int, act: str, std: float, targets: Targets, modules_to_save: Any
) -> None:
    whole("bottleneck", bottleneck, least=1)
    choice("act", act, ACTIVATIONS)
    real("std", std, least=0)
    check_targets("targets", targets)
    check_names("modules_to_save", modules_to_save)


def _own(path: str, adapter: Bottleneck) -> set[tuple]:
    return {
        (*path.split("."), "adapter", *map(str, name))
        for name, _ in nnx.to_flat_state(nnx.state(adapter))
    }


def _norms_beside(model: nnx.Module, paths: set[str]) -> set[tuple]:
    """The normalisations of the layers that the paths lie in.

    All of the model's where no layers can be told.
    """
    roots = {stack_root(model, path) for path in paths}
    norms = [
        path
        for path, module in named_modules(model)
        if isinstance(module, nnx.LayerNorm | nnx.RMSNorm)
    ]
    inside = {
        p
        for p in norms
        if None in roots or any(p.startswith(f"{root}.") for root in roots)
    }
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
    """Adapters after the linear layers that `targets` names.

    By default both output projections of every layer.

    Args:
      bottleneck: m.
      act: activation, one of `models.activations`.
      std: of the initial weights, a normal distribution cut at two deviations; 0 starts
        as the identity, but then W_up and W_down both have no gradient.
      norms: trains the layers' normalisations too, as the paper does.
      modules_to_save: trained in full beside it, where the model has them.

    Trains 2 d m + d + m numbers a target.
    """
    _checked(bottleneck, act, std, targets, modules_to_save)
    flag("norms", norms)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable, found = set(), find_linears(model, targets, modules_to_save)
        for number, (path, base) in enumerate(sorted(found.items())):
            *stacked, _, width = linear_shape(base)
            adapter = Bottleneck(
                tuple(stacked),
                width,
                bottleneck,
                act,
                std,
                jax.random.fold_in(key, number),
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
    """Adapters beside whole sublayers, by default the feed-forward networks; s = 4 as in the paper.

    `targets` names modules that map hidden states [..., d] to the same width; a linear
    layer is one too. W_up starts at zero, so that the model is unchanged at first.
    Trains 2 d m + d + m numbers a target.
    """
    _checked(bottleneck, act, std, targets, modules_to_save)
    real("scale", scale)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set()
        for number, (path, base) in enumerate(
            sorted(find_modules(model, targets, nnx.Module).items())
        ):
            stacked = linears_in(base)[0][:-2]
            adapter = Bottleneck(
                stacked,
                width_of(base),
                bottleneck,
                act,
                std,
                jax.random.fold_in(key, number),
            )
            adapter.up[...] = jnp.zeros_like(adapter.up[...])
            replace_module(model, path, ParallelAdapter(base, adapter, scale))
            trainable |= _own(path, adapter)
        return trainable | head_paths(model, modules_to_save)

    return Method("parallel_adapter", install)
