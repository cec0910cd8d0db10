"""The two places where a model takes trained tokens that are no text.

A prompt before the embedded tokens, and a prefix of keys and values inside attention.

A model takes a prompt if it has an attribute `prompt` (None at first) and `vocabulary`,
its token embedding. It embeds the text, puts the prompt before it (`prepend`), lets
every token see the prompt, numbers positions on behind it (`behind`), and drops the
prompt's own hidden states, so that outputs keep the text's shape.

An attention module takes a prefix if it has an attribute `prefix` (None at first) and
`kv_shape`, the (heads, head_dim) of its keys. It calls `with_prefix` last before the
attention itself, behind rotary embedding and cache.

Both kinds take positions: a module that numbers them has an attribute `first_position`,
the number of its first token, 0 at first; a prefix of p tokens sets it to p.
"""

from typing import Any

import jax
import jax.numpy as jnp


def prepend(prompt: Any, embedded: jax.Array) -> tuple[jax.Array, int]:
    """([B, p + T, d], p) from embedded [B, T, d] and `prompt() -> [p, d]`.

    P = 0 where the prompt is None.
    """
    if prompt is None:
        return embedded, 0
    tokens = prompt().astype(embedded.dtype)
    tokens = jnp.broadcast_to(tokens, (embedded.shape[0], *tokens.shape))
    return jnp.concatenate([tokens, embedded], axis=1), tokens.shape[1]


def behind(positions: jax.Array, n_prompt: int) -> jax.Array:
    """i32[..., p + T]: 0, ..., p - 1, and then the text's positions [..., T] shifted by p."""
    first = jnp.broadcast_to(
        jnp.arange(n_prompt, dtype=positions.dtype), (*positions.shape[:-1], n_prompt)
    )
    return jnp.concatenate([first, positions + n_prompt], axis=-1)


def seen_by_all(mask: jax.Array, n_prompt: int, queries: bool = False) -> jax.Array:
    """A mask [..., T, S] (or [..., S]) with p columns before it that everybody sees,
    and with `queries` p rows too.
    """
    rows = [(n_prompt, 0)] if queries else [(0, 0)]
    widths = [(0, 0)] * (mask.ndim - 2) + rows * (mask.ndim > 1) + [(n_prompt, 0)]
    return jnp.pad(mask, widths, constant_values=1)


def with_prefix(
    prefix: Any, keys: jax.Array, values: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(keys, values, mask) with the prefix before them, seen by every query.

    Args:
      prefix: `prefix() -> (keys, values) [p, heads, head_dim]`, or None.
      keys, values: [B, S, heads, head_dim].
      mask: bool[..., T or 1, S], or None where all is seen.
    """
    if prefix is None:
        return keys, values, mask

    def join(new: jax.Array, old: jax.Array) -> jax.Array:
        new = jnp.broadcast_to(new.astype(old.dtype), (old.shape[0], *new.shape))
        return jnp.concatenate([new, old], axis=1)

    new_keys, new_values = prefix()
    if mask is not None:
        mask = seen_by_all(mask, new_keys.shape[0])
    return join(new_keys, keys), join(new_values, values), mask
