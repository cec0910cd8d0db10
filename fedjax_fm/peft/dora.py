"""DoRA: low-rank updates of the directions of a kernel's columns, and their lengths.

References:
  Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen (2024). DoRA: Weight-Decomposed Low-Rank
  Adaptation. arXiv 2402.09353.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.stacked import Shared
from fedjax_fm.peft.linear import columns
from fedjax_fm.peft.lora import LoRALinear, lora
from fedjax_fm.peft.method import Method
from fedjax_fm.peft.patterns import HEADS, Targets
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.tokens import TokenIndices


class DoRALinear(LoRALinear):
    """A linear layer with a low-rank update and a trained length of every column.

    `magnitude` f32[..., out] holds the lengths. With dropout, and z what it leaves of
    x, the layer computes PEFT's form, with c = m / ||W + s A B||:

        y = x W + (c - 1) z W + c s z A B

    Args:
      base: an `nnx.Linear`.
      lora_a: f32[..., in, r].
      lora_b: f32[..., r, out].
      scaling: s.
      **options: as for `LoRALinear`.

    Raises:
      ValueError: the base has no dense kernel.
    """

    def __init__(
        self,
        base: Any,
        lora_a: jax.Array | Shared,
        lora_b: jax.Array,
        scaling: float,
        **options: Any,
    ):
        if not isinstance(base, nnx.Linear):
            raise ValueError(
                f"DoRA needs the norms of a dense kernel, got {type(base).__name__}; "
                "use lora"
            )
        super().__init__(base, lora_a, lora_b, scaling, **options)
        self.magnitude = nnx.Param(jnp.sqrt(_squares(base.kernel[...])))

    def norms(self) -> jax.Array:
        """The norms ||W + s A B|| of the columns, without forming the sum.

        Returns:
          f32[..., out].
        """
        kernel = self.base.kernel[...].astype(jnp.float32)
        a, b = self.lora_a[...], self.scaling * self.lora_b[...]
        mixed = jnp.einsum("...io,...ir->...ro", kernel, a)
        gram = jnp.einsum("...ir,...is->...rs", a, a)
        both = 2 * jnp.sum(mixed * b, -2)
        squares = _squares(kernel) + both + jnp.sum(b * (gram @ b), -2)
        smallest = jnp.finfo(jnp.float32).tiny
        return jnp.sqrt(jnp.maximum(squares, smallest))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        y, dropped = self.base(x), self.dropped(x)
        read = y if dropped is x else self.base(dropped)
        stretch = self.magnitude[...] / jax.lax.stop_gradient(self.norms())
        unbiased = read if self.base.bias is None else read - self.base.bias[...]
        update = stretch * self.of_dropped(dropped)
        return (y + (stretch - 1) * unbiased + update).astype(y.dtype)

    def fold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Writes direction and length into the kernel.

        Args:
          kernel: [..., in, out].
          bias: [..., out], or None.

        Returns:
          (m (W + s A B) / ||W + s A B||, the bias as it is).
        """
        stretch = columns(self.magnitude[...] / self.norms())
        return (stretch * (kernel + self.product())).astype(kernel.dtype), bias

    def unfold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The inverse of `fold`.

        Args:
          kernel: [..., in, out], after `fold`.
          bias: [..., out], or None.

        Returns:
          The kernel before `fold`, and the bias as it is.
        """
        # The norms are those of this layer's own base: a merged kernel has lost them.
        stretch = columns(self.magnitude[...] / self.norms())
        return (kernel / stretch - self.product()).astype(kernel.dtype), bias


def _squares(kernel: jax.Array) -> jax.Array:
    """Squared norm of each column."""
    wide = kernel.astype(jnp.float32)
    return jnp.sum(jnp.square(wide), axis=-2)


@refuses_pefts_words
def dora(
    rank: int,
    alpha: float | None = None,
    *,
    targets: Targets,
    exclude_modules: Targets | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    trainable_token_indices: TokenIndices | None = None,
    use_rslora: bool = False,
    dropout: float = 0.0,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """DoRA: trains direction and length of each column of the chosen kernels.

        W' = m (W + s A B) / ||W + s A B||

    The norm is over the inputs of each output, and is held constant in the gradient
    (equation 11 of the paper). m starts as ||W||, so that the model is unchanged at
    first. A matrix has r (in + out) + out trained numbers. Kernels must be dense.

    Args:
      rank: r, at most the smaller side of every target.
      alpha: of the scale s = alpha / r; None: s = 1.
      targets: which linear layers, as for `lora`.
      exclude_modules: which of them not, as for `lora`.
      rank_pattern: other ranks for some layers, as for `lora`.
      alpha_pattern: other alphas for some layers, as for `lora`.
      trainable_token_indices: tokens whose embeddings are trained, as for `lora`.
      use_rslora: s = alpha / sqrt(r).
      dropout: rate on the input of A; acts only where the model is called with a key.
      modules_to_save: modules that are trained in full, as for `lora`.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for names that the
        model does not have, or quantised kernels.

    References:
      Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen (2024), arXiv 2402.09353, equations 5
      and 11.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, dora(2, alpha=4, targets=["layer"]))
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'layer': {'lora_a': (4, 2), 'lora_b': (2, 3), 'magnitude': (3,)}}
    """
    method = lora(
        rank,
        alpha,
        targets=targets,
        exclude_modules=exclude_modules,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        trainable_token_indices=trainable_token_indices,
        use_rslora=use_rslora,
        dropout=dropout,
        modules_to_save=modules_to_save,
        kind=DoRALinear,
    )
    return method._replace(name="dora")
