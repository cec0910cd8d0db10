"""(IA)³: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning.

Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel, 2022, arXiv 2205.05638. Keys, values
and the inner activations of the feed-forward network are multiplied by trained vectors
that start as ones.
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

# As Hugging Face names them, and as PEFT picks them: "output.dense" is BERT's attention output too.
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
    )
)


class IA3Linear(Wrapper):
    """scale * base(x), or base(scale * x) in a feed-forward network.

    Scale [..., out] or [..., in].
    """

    def __init__(self, base: Any, scale: jax.Array, on_input: bool):
        self.base, self.on_input = base, on_input
        self.ia3 = nnx.Param(scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.on_input:
            return self.base((x * self.ia3[...]).astype(x.dtype))
        y = self.base(x)
        return (y * self.ia3[...]).astype(y.dtype)

    def fold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        return self._scaled(self.ia3[...], kernel, bias)

    def unfold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """A channel whose scale is zero has lost its weights."""
        return self._scaled(1 / self.ia3[...], kernel, bias)

    def _scaled(self, scale: jax.Array, kernel: jax.Array, bias: jax.Array | None):
        if self.on_input:
            return (kernel * scale[..., :, None]).astype(kernel.dtype), bias
        return (kernel * columns(scale)).astype(
            kernel.dtype
        ), None if bias is None else (bias * scale).astype(bias.dtype)


@refuses_pefts_words
def ia3(
    targets: Targets = ATTENTION,
    feedforward: Targets | None = FEED_FORWARD,
    *,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """Scales the outputs of `targets` and the inputs of `feedforward`.

    Args:
      targets, feedforward: regular expressions on the dotted module path, or lists of
        path endings; a module that both name counts as feed-forward. None: no
        feed-forward layers.
      modules_to_save: trained in full beside it; by default the head, where the model has one.

    Trains `out` numbers a target and `in` a feed-forward layer. The model is unchanged at first.
    """
    check_targets("targets", targets)
    if feedforward is not None:
        check_targets("feedforward", feedforward)
    check_names("modules_to_save", modules_to_save)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        found = find_linears(model, targets, modules_to_save)
        inner = (
            {}
            if feedforward is None
            else find_linears(model, feedforward, modules_to_save)
        )
        trainable = set()
        for path, base in sorted({**found, **inner}.items()):
            *stacked, n_in, n_out = linear_shape(base)
            on_input = path in inner
            scale = jnp.ones((*stacked, n_in if on_input else n_out))
            replace_module(model, path, IA3Linear(base, scale, on_input))
            trainable.add((*path.split("."), "ia3"))
        return trainable | head_paths(model, modules_to_save)

    return Method("ia3", install)
