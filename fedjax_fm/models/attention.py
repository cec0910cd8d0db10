"""Multi-head attention between projected tokens."""

from typing import Any

import jax

from fedjax_fm.axes import MODEL
from fedjax_fm.models.splash import Texts, splash
from fedjax_fm.models.virtual_tokens import with_prefix

# `with computed_by("cudnn"):` around what is traced: flash attention on GPUs with cuDNN,
# of bf16 and f16 alone; "splash": in blocks on TPUs, of decoders of Llama's family.
# "xla": products, softmax and products, everywhere.
IMPLEMENTATIONS = ("xla", "cudnn", "splash")
computed_by = jax.make_user_context("xla")


def goes_by_texts() -> bool:
    """Whether attention is told which tokens see which by `Texts`, not by pairs."""
    return computed_by.value == "splash"


def dot_product(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    mask: jax.Array | Texts | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """softmax(scale query keys^T + bias) values, the one attention of all families.

    Args:
      query: [B, T, heads, head_dim].
      keys: [B, S, kv_heads, head_dim]; each serves heads / kv_heads heads.
      values: [B, S, kv_heads, head_dim].
      mask: bool, broadcast to [B, heads, T, S]; True is seen. None: everything is.
        `Texts` where "splash" computes.
      bias: broadcast likewise, added to the scores.
      scale: of the scores; None: 1 / sqrt(head_dim).

    Returns:
      [B, T, heads, head_dim].

    Raises:
      ValueError: the backbone is split over devices that do not divide the heads;
        "splash" is to compute what is not causal attention within texts.

    References:
      Vaswani et al., 2017, arXiv 1706.03762, section 3.2.1.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.ones((2, 3, 4, 8))
      >>> dot_product(x, x, x).shape
      (2, 3, 4, 8)
    """
    _check_heads(keys.shape[2])
    if isinstance(mask, Texts):
        return splash(query, keys, values, mask, scale)
    if goes_by_texts():
        raise ValueError(
            "computed_by('splash') takes decoders of Llama's family without a window, a "
            "prefix, a trained prompt or a cache; compute this model by 'xla' or 'cudnn'"
        )
    return jax.nn.dot_product_attention(
        query,
        keys,
        values,
        bias=bias,
        mask=mask,
        scale=scale,
        implementation=computed_by.value,
    )


def _check_heads(n: int) -> None:
    """Refuses heads that do not divide over the devices that share a backbone.

    XLA would take such a split, and send parts of heads to and fro.
    """
    parts = dict(jax.sharding.get_abstract_mesh().shape).get(MODEL, 1)
    if n % parts:
        raise ValueError(
            f"expected model_parallel to divide the heads of keys and values, got "
            f"model_parallel={parts} and {n} heads; the devices that are left over can "
            "carry clients"
        )


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
    attended = dot_product(split(query), keys, values, mask=mask)
    return attended.reshape(query.shape)
