"""Attention adapters: a trained share for every feature that a linear layer puts out.

References:
  Lu, Hu, Wang, Xie (2023). FedCLIP: Fast Generalization and Personalization for CLIP in
  Federated Learning. arXiv 2302.13485.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.checks import choice
from fedjax_fm.peft.linear import LinearLayer, linear_shape
from fedjax_fm.peft.method import Method, parameter_paths
from fedjax_fm.peft.patterns import Targets, check_targets
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import Wrapper, find_modules, replace_module

IMAGE_FEATURES = ("visual_projection",)  # CLIP's, as the paper adapts them


class FeatureAttention(nnx.Module):
    """Shares of features: softmax(tanh(y W_1 + b_1) W_2 + b_2).

    Args:
      inner: f32[d, d], W_1.
      inner_bias: f32[d], b_1.
      outer: f32[d, d], W_2.
      outer_bias: f32[d], b_2.
    """

    def __init__(
        self,
        inner: jax.Array,
        inner_bias: jax.Array,
        outer: jax.Array,
        outer_bias: jax.Array,
    ):
        self.inner, self.inner_bias = nnx.Param(inner), nnx.Param(inner_bias)
        self.outer, self.outer_bias = nnx.Param(outer), nnx.Param(outer_bias)

    def __call__(self, y: jax.Array) -> jax.Array:
        """f32[..., d] -> f32[..., d], positive and of sum one."""
        hidden = jnp.tanh(y @ self.inner[...] + self.inner_bias[...])
        return jax.nn.softmax(hidden @ self.outer[...] + self.outer_bias[...])


class AttendedLinear(Wrapper):
    """A linear layer whose outputs are multiplied by their shares: a(y) y, y = base(x).

    Args:
      base: the linear layer.
      adapter: of the width of its output.
    """

    def __init__(self, base: Any, adapter: FeatureAttention):
        self.base, self.adapter = base, adapter

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        y = self.base(x)
        return (self.adapter(y) * y).astype(y.dtype)


@refuses_pefts_words
def attention_adapter(
    targets: Targets = IMAGE_FEATURES, *, init: Literal["zero", "torch"] = "zero"
) -> Method:
    """FedCLIP's adapter: the share of every feature, read from all features.

        a = softmax(W_2 tanh(W_1 y + b_1) + b_2);   y <- a * y

    A target with d outputs has 2 (d^2 + d) trained numbers. Where the outputs are brought
    to length one afterwards, as CLIP's are, equal shares change nothing.

    Args:
      targets: which linear layers: a regular expression on the dotted module path, or a
        list of path endings. By default CLIP's features of images, as in the paper; both
        towers are `["visual_projection", "text_projection"]`.
      init: initial values. "zero": W_2 and b_2 are 0, so that the shares are equal and
        CLIP answers as before; "torch", as in the authors' code: all of them
        U(-1, 1) / sqrt(d). W_1 and b_1 are drawn so in both.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for names that the
        model does not have, or layers of a stack.

    References:
      Lu et al. (2023), arXiv 2302.13485, section 3, "attention-based adapter".

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(visual_projection=nnx.Linear(6, 4, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.attention_adapter())
      >>> delta = nnx.to_pure_dict(adapted.delta)["visual_projection"]["adapter"]
      >>> jax.tree.map(jnp.shape, delta)
      {'inner': (4, 4), 'inner_bias': (4,), 'outer': (4, 4), 'outer_bias': (4,)}
    """
    check_targets("targets", targets)
    choice("init", init, ("zero", "torch"))

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set()
        found = find_modules(model, targets, LinearLayer)
        for number, (path, base) in enumerate(sorted(found.items())):
            adapter = _drawn(path, base, init, jax.random.fold_in(key, number))
            replace_module(model, path, AttendedLinear(base, adapter))
            above = (*path.split("."), "adapter")
            trainable |= {(*above, *name) for name in parameter_paths(adapter)}
        return trainable

    return Method("attention_adapter", install)


def _drawn(path: str, base: Any, init: str, key: jax.Array) -> FeatureAttention:
    """The adapter of one layer, at its initial values."""
    *stacked, _, width = linear_shape(base)
    if stacked:
        raise ValueError(
            f"attention adapters follow single layers such as CLIP's projections, and "
            f"{path} is one of a stack of {stacked[0]}"
        )
    bound = width**-0.5
    shapes = ((width, width), (width,), (width, width), (width,))
    keys = jax.random.split(key, len(shapes))
    inner, inner_bias, outer, outer_bias = (
        jax.random.uniform(one, shape, minval=-bound, maxval=bound)
        for one, shape in zip(keys, shapes, strict=True)
    )
    if init == "zero":
        outer, outer_bias = jnp.zeros_like(outer), jnp.zeros_like(outer_bias)
    return FeatureAttention(inner, inner_bias, outer, outer_bias)
