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
    """[B, T, d] from query [B, T, d] and key, value [B, S, d], all split into `heads`
    and scaled by 1 / sqrt(d / heads).

    Args:
      mask: bool, broadcast to [B, heads, T, S]; True is seen.
      prefix: trained keys and values before the others, see `virtual_tokens`.
    """

    def split(x):
        return x.reshape(*x.shape[:-1], heads, -1)  # [B, T, H, d / H]

    keys, values, mask = with_prefix(prefix, split(key), split(value), mask)
    return jax.nn.dot_product_attention(split(query), keys, values, mask=mask).reshape(
        query.shape
    )
