"""The last layer of classifiers."""

import jax
import jax.numpy as jnp
from flax import nnx


def classifier(
    width: int, num_labels: int, rngs: nnx.Rngs, bias: bool = True
) -> nnx.Linear:
    """A linear layer [width] -> [num_labels] in f32, normal(0.02), whatever dtype the
    backbone has.
    """
    if num_labels < 1:
        raise ValueError(f"expected num_labels >= 1, got {num_labels}")
    init = nnx.initializers.normal(0.02)
    return nnx.Linear(width, num_labels, use_bias=bias, kernel_init=init, rngs=rngs)


def last_real(hidden: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """[B, d]: the hidden state [B, T, d] of each row's last real token.

    Of the last token without a mask.
    """
    if attention_mask is None:
        return hidden[:, -1]
    number = jnp.arange(hidden.shape[1], dtype=jnp.int32)
    last = jnp.max(jnp.where(attention_mask.astype(bool), number[None, :], 0), axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def mean_of_real(hidden: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """[B, d]: the mean of the hidden states [B, T, d] of each row's real tokens.

    Zero where there are none.
    """
    if attention_mask is None:
        return hidden.mean(axis=1)
    weights = attention_mask.astype(hidden.dtype)[..., None]
    # A row of padding only has no mean: zero, not 0/0.
    return (hidden * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1.0)
