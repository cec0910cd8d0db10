"""The two places where a model takes trained tokens that are no text.

They are a prompt before the embedded tokens (Lester et al., 2021, arXiv 2104.08691) and
a prefix of keys and values inside attention (Li and Liang, 2021, arXiv 2101.00190).

A model takes a prompt if it has an attribute `prompt` (None at first) and `vocabulary`,
its token embedding; `embed(ids)`, where embedded tokens are not its rows as they are.
It embeds the text, puts the prompt before it (`prepend`), lets
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
    """Puts a prompt of p tokens before embedded text.

    Args:
      prompt: `prompt() -> [p, d]`; None: p = 0.
      embedded: [B, T, d].

    Returns:
      ([B, p + T, d], p).

    Example:
      >>> tokens, p = prepend(lambda: jnp.zeros((2, 4)), jnp.ones((1, 3, 4)))
      >>> tokens.shape, p
      ((1, 5, 4), 2)
    """
    if prompt is None:
        return embedded, 0
    tokens = prompt().astype(embedded.dtype)
    tokens = jnp.broadcast_to(tokens, (embedded.shape[0], *tokens.shape))
    return jnp.concatenate([tokens, embedded], axis=1), tokens.shape[1]


def behind(positions: jax.Array, n_prompt: int) -> jax.Array:
    """The positions 0, ..., p - 1 of a prompt, and the text's behind them.

    Args:
      positions: i32[..., T], of the text; p is added.
      n_prompt: p.

    Returns:
      i32[..., p + T].

    Example:
      >>> behind(jnp.array([0, 1]), n_prompt=2).tolist()
      [0, 1, 2, 3]
    """
    first = jnp.broadcast_to(
        jnp.arange(n_prompt, dtype=positions.dtype), (*positions.shape[:-1], n_prompt)
    )
    return jnp.concatenate([first, positions + n_prompt], axis=-1)


def seen_by_all(mask: jax.Array, n_prompt: int, queries: bool = False) -> jax.Array:
    """A mask with p columns before it that every token sees.

    Args:
      mask: bool or 0 and 1, [..., T, S] or [..., S].
      n_prompt: p.
      queries: whether p rows are put before it, too.

    Returns:
      [..., T, p + S] or [..., p + S]; with `queries` [..., p + T, p + S].

    Example:
      >>> seen_by_all(jnp.array([[1, 0]]), n_prompt=1).tolist()
      [[1, 1, 0]]
    """
    rows = [(n_prompt, 0)] if queries else [(0, 0)]
    widths = [(0, 0)] * (mask.ndim - 2) + rows * (mask.ndim > 1) + [(n_prompt, 0)]
    return jnp.pad(mask, widths, constant_values=1)


def with_prefix(
    prefix: Any, keys: jax.Array, values: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Puts a prefix before keys and values, seen by every query.

    Args:
      prefix: `prefix() -> (keys, values) [p, heads, head_dim]`; None: p = 0.
      keys: [B, S, heads, head_dim].
      values: [B, S, heads, head_dim].
      mask: bool[..., T or 1, S], or None where all is seen. One of p + S keys says for
        the prefix, too, who sees it (`windows.masks_of`).

    Returns:
      (keys, values, mask), of p + S tokens.
    """
    if prefix is None:
        return keys, values, mask

    def join(new: jax.Array, old: jax.Array) -> jax.Array:
        new = jnp.broadcast_to(new.astype(old.dtype), (old.shape[0], *new.shape))
        return jnp.concatenate([new, old], axis=1)

    new_keys, new_values = prefix()
    if mask is not None and mask.shape[-1] == keys.shape[1]:
        mask = seen_by_all(mask, new_keys.shape[0])
    return join(new_keys, keys), join(new_values, values), mask
