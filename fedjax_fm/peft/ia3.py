"""(IA)³: multiplies activations by trained vectors.

References:
  Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel (2022). Few-Shot Parameter-Efficient
  Fine-Tuning is Better and Cheaper than In-Context Learning. arXiv 2205.05638.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.peft.linear import columns, linear_shape
from fedjax_fm.peft.method import Method, head_paths
from fedjax_fm.peft.patterns import HEADS, AnyOf, Targets, check_names, check_targets
from fedjax_fm.peft.places import find_linears
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import Wrapper, replace_module

# As Hugging Face names them, and as PEFT picks them: "output.dense" is also the output
# of BERT's attention.
ATTENTION = AnyOf(
    ("key", "value", "k_proj", "v_proj", "c_attn", "k_lin", "v_lin", "k", "v")
)
FEED_FORWARD = AnyOf(
    (
        "output.dense",
        "down_proj",
        "mlp.c_proj",
        "ffn.lin2",
        "ffn_output",
        "wo",
        "mlp.fc2",
        "layers.fc2",
    )
)


class IA3Linear(Wrapper):
    """A linear layer whose output or input is scaled: s * base(x), or base(s * x).

    Args:
      base: the linear layer.
      scale: f32[..., out], or f32[..., in] with `on_input`.
      on_input: whether the input is scaled, as in feed-forward networks.
    """

    def __init__(self, base: Any, scale: jax.Array, on_input: bool):
        self.base, self.on_input = base, on_input
        self.ia3 = nnx.Param(scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        if self.on_input:
            return self.base((x * self.ia3[...]).astype(x.dtype))
        y = self.base(x)
        return (y * self.ia3[...]).astype(y.dtype)

    def fold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Multiplies kernel and bias by the scale.

        Args:
          kernel: [..., in, out].
          bias: [..., out], or None.

        Returns:
          Both, scaled.
        """
        return self._scaled(self.ia3[...], kernel, bias)

    def unfold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Divides kernel and bias by the scale; a channel of scale zero is lost.

        Args:
          kernel: [..., in, out].
          bias: [..., out], or None.

        Returns:
          Both, as before `fold`.
        """
        return self._scaled(1 / self.ia3[...], kernel, bias)

    def _scaled(self, scale: jax.Array, kernel: jax.Array, bias: jax.Array | None):
        """Kernel and bias, times the scale."""
        if self.on_input:
            return (kernel * scale[..., :, None]).astype(kernel.dtype), bias
        scaled = (kernel * columns(scale)).astype(kernel.dtype)
        if bias is not None:
            bias = (bias * scale).astype(bias.dtype)
        return scaled, bias


@refuses_pefts_words
def ia3(
    targets: Targets = ATTENTION,
    feedforward: Targets | None = FEED_FORWARD,
    *,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """(IA)³: scales the outputs of `targets` and the inputs of `feedforward`.

        y = s * (x W + b) for a target,   y = (s * x) W + b for a feed-forward layer

    The vectors s start as ones, so that the model is unchanged at first. They have
    `out` numbers for a target and `in` for a feed-forward layer.

    Args:
      targets: a regular expression on the dotted module path, or a list of path
        endings. By default the keys and values of attention under Hugging Face's names.
      feedforward: likewise; by default the second layers of the feed-forward networks.
        None: no feed-forward layers. A module that both name is scaled on its input.
      modules_to_save: modules that are trained in full; by default the head, where the
        model has one.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for names that the
        model does not have.

    References:
      Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel (2022), arXiv 2205.05638.

    Example:
      >>> from fedjax_fm import peft
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Dict(
      ...     key=nnx.Linear(4, 6, rngs=rngs), wo=nnx.Linear(8, 4, rngs=rngs)
      ... )
      >>> adapted = peft.apply(model, ia3(["key"], ["wo"]))
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'key': {'ia3': (6,)}, 'wo': {'ia3': (8,)}}
    """
    check_targets("targets", targets)
    if feedforward is not None:
        check_targets("feedforward", feedforward)
    check_names("modules_to_save", modules_to_save)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        found = find_linears(model, targets, modules_to_save)
        inner = {}
        if feedforward is not None:
            inner = find_linears(model, feedforward, modules_to_save)
        trainable = set()
        for path, base in sorted({**found, **inner}.items()):
            *stacked, n_in, n_out = linear_shape(base)
            on_input = path in inner
            scale = jnp.ones((*stacked, n_in if on_input else n_out))
            replace_module(model, path, IA3Linear(base, scale, on_input))
            trainable.add((*path.split("."), "ia3"))
        return trainable | head_paths(model, modules_to_save)

    return Method("ia3", install)
