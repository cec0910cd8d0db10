"""DoRA: Weight-Decomposed Low-Rank Adaptation.

Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen, 2024, arXiv 2402.09353. W' = m (W + s A B)
/ ||W + s A B||, the norm taken over the inputs of each output and held constant in the
gradient (their equation 11); m starts as ||W||.

With dropout, and z what it leaves of x, PEFT's form: y = x W + (m / ||W + s A B|| - 1)
z W + (m / ||W + s A B||) s z A B.
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
    """A linear layer whose columns have a trained direction (low rank) and a trained
    length, `magnitude` [..., out].
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
                f"DoRA needs the norms of a dense kernel, got {type(base).__name__}; use lora"
            )
        super().__init__(base, lora_a, lora_b, scaling, **options)
        self.magnitude = nnx.Param(jnp.sqrt(_squares(base.kernel[...])))

    def norms(self) -> jax.Array:
        """||W + s A B|| of each column, [..., out], from products with r columns.

        W + s A B is never formed.
        """
        kernel, a, b = (
            self.base.kernel[...].astype(jnp.float32),
            self.lora_a[...],
            self.scaling * self.lora_b[...],
        )
        mixed = jnp.einsum("...io,...ir->...ro", kernel, a)
        gram = jnp.einsum("...ir,...is->...rs", a, a)
        squares = (
            _squares(kernel) + 2 * jnp.sum(mixed * b, -2) + jnp.sum(b * (gram @ b), -2)
        )
        return jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))

    def __call__(self, x: jax.Array) -> jax.Array:
        y, dropped = self.base(x), self.dropped(x)
        read = y if dropped is x else self.base(dropped)
        stretch = self.magnitude[...] / jax.lax.stop_gradient(self.norms())
        unbiased = read if self.base.bias is None else read - self.base.bias[...]
        return (
            y + (stretch - 1) * unbiased + stretch * self.of_dropped(dropped)
        ).astype(y.dtype)

    def fold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        stretch = columns(self.magnitude[...] / self.norms())
        return (stretch * (kernel + self.product())).astype(kernel.dtype), bias

    def unfold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        # The norms are those of this layer's own base: a merged kernel has lost them.
        stretch = columns(self.magnitude[...] / self.norms())
        return (kernel / stretch - self.product()).astype(kernel.dtype), bias


def _squares(kernel: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=-2)


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
    """DoRA on the linear layers that `targets` names; arguments as `lora`.

    Trains r (in + out) + out numbers a matrix. The model is unchanged at first. Needs
    dense kernels.
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
