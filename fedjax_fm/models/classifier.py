"""The last layer of classifiers."""

import jax
import jax.numpy as jnp
from flax import nnx


def classifier(
    width: int, num_labels: int, rngs: nnx.Rngs, bias: bool = True
) -> nnx.Linear:
    """A classification layer in f32, whatever dtype the backbone has.

    Args:
      width: d, inputs.
      num_labels: outputs.
      rngs: draws the weights, normal(0.02).
      bias: whether there is one, zero at first.

    Raises:
      ValueError: fewer than one label.
    """
    if num_labels < 1:
        raise ValueError(f"expected num_labels >= 1, got {num_labels}")
    init = nnx.initializers.normal(0.02)
    return nnx.Linear(width, num_labels, use_bias=bias, kernel_init=init, rngs=rngs)


def last_real(hidden: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """The hidden state of each row's last real token.

    Args:
      hidden: [B, T, d].
      attention_mask: [B, T], 1 for real tokens; None: all are.

    Returns:
      [B, d].

    Example:
      >>> hidden = jnp.arange(6.0).reshape(2, 3, 1)
      >>> last_real(hidden, jnp.array([[1, 1, 0], [0, 1, 1]]))[:, 0].tolist()
      [1.0, 5.0]
    """
    if attention_mask is None:
        return hidden[:, -1]
    number = jnp.arange(hidden.shape[1], dtype=jnp.int32)
    real = attention_mask.astype(bool)
    last = jnp.max(jnp.where(real, number[None, :], 0), axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def mean_of_real(hidden: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """The mean of the hidden states of each row's real tokens.

    Args:
      hidden: [B, T, d].
      attention_mask: [B, T], 1 for real tokens; None: all are.

    Returns:
      [B, d]; zero where a row has no real token.

    Example:
      >>> hidden = jnp.arange(6.0).reshape(2, 3, 1)
      >>> mean_of_real(hidden, jnp.array([[1, 1, 0], [0, 0, 0]]))[:, 0].tolist()
      [0.5, 0.0]
    """
    if attention_mask is None:
        return hidden.mean(axis=1)
    weights = attention_mask.astype(hidden.dtype)[..., None]
    # A row of padding only has no mean: zero, not 0/0.
    count = jnp.maximum(weights.sum(axis=1), 1.0)
    return (hidden * weights).sum(axis=1) / count
