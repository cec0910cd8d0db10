"""The slots of a key-value cache, into which tokens are written one step after another."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def real_tokens(input_ids: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """Which tokens are real, bool[B, T].

    Args:
      input_ids: i32[B, T].
      attention_mask: [B, T], 1 for real tokens; None: all are.
    """
    if attention_mask is None:
        return jnp.ones(input_ids.shape, bool)
    return attention_mask.astype(bool)


def written(
    slots: Sequence[jax.Array], new: Sequence[jax.Array], start: jax.Array, axis: int
) -> list[jax.Array]:
    """Slots with other arrays in them, in the slots' dtypes.

    Args:
      slots: keys and values, with room along `axis`.
      new: as many, shorter along `axis`.
      start: i32[], the first place that is written.
      axis: of tokens.
    """
    write = jax.lax.dynamic_update_slice_in_dim
    return [
        write(slot, one.astype(slot.dtype), start, axis)
        for slot, one in zip(slots, new, strict=True)
    ]


def seen_by(
    valid: jax.Array, real: jax.Array, length: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What new tokens see of a cache: what is real, and not behind them.

    Args:
      valid: bool[B, room], which slots hold real tokens.
      real: bool[B, T], which of the new tokens are.
      length: i32[], slots that are taken so far.

    Returns:
      (valid with the new tokens bool[B, room], mask bool[B, 1, T, room]).
    """
    (valid,) = written([valid], [real], length, axis=1)
    places = length + jnp.arange(real.shape[1], dtype=jnp.int32)
    earlier = jnp.arange(valid.shape[-1]) <= places[:, None]
    return valid, earlier & valid[:, None, None, :]
