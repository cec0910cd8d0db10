"""Causal attention that never holds all scores at once, for TPUs.

The kernel is JAX's own splash attention. Elsewhere than on TPUs it is interpreted, which
is slow and serves tests.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.dispatch import platform

LANES = 128  # the kernel reads whole blocks of so many tokens
NO_TEXT = -1  # of tokens that are added to fill a block


class Texts(NamedTuple):
    """Which tokens see which, without a table of all pairs: those before, of their text.

    Attributes:
      numbers: i32[B, T], the number of each token's text; at least 0.
    """

    numbers: jax.Array


def splash(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    texts: Texts,
    scale: float | None = None,
) -> jax.Array:
    """softmax(scale query keys^T) values, in blocks of tokens.

    The scores of a block live in the core's own memory, also in the backward pass, so
    that memory grows with T and not with T^2.

    Args:
      query: [B, T, heads, head_dim].
      keys: [B, T, kv_heads, head_dim]; each serves heads / kv_heads heads.
      values: [B, T, kv_heads, head_dim].
      texts: which tokens see which.
      scale: of the scores; None: 1 / sqrt(head_dim).

    Returns:
      [B, T, heads, head_dim].

    References:
      Dao et al., 2022, arXiv 2205.14135, algorithm 1.

    Example:
      >>> x = jnp.ones((1, 4, 2, 8))
      >>> splash(x, x, x, Texts(jnp.ones((1, 4), jnp.int32))).shape
      (1, 4, 2, 8)
    """
    # Takes a tenth of a second, which only those who ask for it wait for.
    from jax.experimental.pallas.ops.tpu import splash_attention

    length, heads, width = query.shape[1:]
    scale = width**-0.5 if scale is None else scale
    missing = -length % LANES

    def laid_out(x):  # [B, heads, blocks of tokens, head_dim]
        filled = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
        return filled.swapaxes(1, 2)

    numbers = jnp.pad(texts.numbers, ((0, 0), (0, missing)), constant_values=NO_TEXT)
    square = (length + missing, length + missing)
    causal = splash_attention.CausalMask(square)
    kernel = splash_attention.make_splash_mha(
        mask=splash_attention.MultiHeadMask([causal] * heads),
        head_shards=1,
        q_seq_shards=1,
        interpret=platform() != "tpu",
    )

    def of_row(query, keys, values, numbers):
        segments = splash_attention.SegmentIds(q=numbers, kv=numbers)
        return kernel(query, keys, values, segment_ids=segments)

    scaled = laid_out(query) * jnp.asarray(scale, query.dtype)
    attended: Any = jax.vmap(of_row)(scaled, laid_out(keys), laid_out(values), numbers)
    return attended.swapaxes(1, 2)[:, :length].astype(query.dtype)
