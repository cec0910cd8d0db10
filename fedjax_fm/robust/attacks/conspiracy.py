"""What liars of a cohort know of each other and of the others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm.robust.attacks.attack import Seen
from fedjax_fm.trees import all_finite
from fedjax_fm.types import Stack


def with_lies(found: Stack, lie: Callable, ids: jax.Array, omniscient: bool) -> Stack:
    """The stack with the lie in the place of the liars' uploads.

    Args:
      found: of (uploads, weights).
      lie: `Attack.together`.
      ids: i32[], of the liars.
      omniscient: whether they see what honest clients send, not their own uploads.

    Returns:
      A stack in which liars' uploads are finite.
    """
    sent, weights = found.values
    leaves, structure = jax.tree.flatten(sent)
    floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    came = found.active & (weights != 0)
    is_liar = came & jnp.isin(found.ids, ids)
    values = [leaves[i].astype(jnp.float32) for i in floats]
    whole = came & (weights > 0) & jax.vmap(all_finite)(values)
    visible = whole & (~is_liar if omniscient else is_liar)
    seen = Seen(
        values=[_rows_where(visible, x, jnp.zeros_like(x)) for x in values],
        visible=visible,
        n=jnp.sum(came),
        n_liars=jnp.sum(is_liar),
    )
    for i, told in zip(floats, lie(seen), strict=True):
        leaves[i] = _rows_where(is_liar, told.astype(leaves[i].dtype), leaves[i])
    weights = jnp.where(is_liar, jnp.abs(weights), weights)  # a lie is finite
    return found._replace(values=(jax.tree.unflatten(structure, leaves), weights))


def _rows_where(chosen: jax.Array, a: Any, b: jax.Array) -> jax.Array:
    """Rows of `a` where chosen, else of `b`."""
    return jnp.where(chosen.reshape(-1, *[1] * (b.ndim - 1)), a, b)
