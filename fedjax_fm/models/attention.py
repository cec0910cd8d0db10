"""Multi-head attention between projected tokens."""

from typing import Any

import jax

from fedjax_fm.models.virtual_tokens import with_prefix


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    heads: int,
    mask: jax.Array | None = None,
    prefix: Any = None,
) -> jax.Array:
    """Multi-head attention, scaled by 1 / sqrt(d / heads).

    Args:
      query: [B, T, d], projected.
      key: [B, S, d], projected.
      value: [B, S, d], projected.
      heads: in how many heads d is split.
      mask: bool, broadcast to [B, heads, T, S]; True is seen. None: everything is.
      prefix: trained keys and values before the others, see `virtual_tokens`; None:
        none.

    Returns:
      [B, T, d].

    References:
      Vaswani et al., 2017, arXiv 1706.03762, section 3.2.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.ones((2, 3, 4))
      >>> attend(x, x, x, heads=2).shape
      (2, 3, 4)
    """

    def split(x):
        return x.reshape(*x.shape[:-1], heads, -1)  # [B, T, H, d / H]

    keys, values = split(key), split(value)
    keys, values, mask = with_prefix(prefix, keys, values, mask)
    attended = jax.nn.dot_product_attention(split(query), keys, values, mask=mask)
    return attended.reshape(query.shape)
