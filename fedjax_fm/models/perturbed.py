"""Embeddings whose parameters need not be whole arrays.

All other modules read a parameter as `parameter[...]`, which draws a `Perturbed` one
there and then, one matrix of one layer at a time. Embeddings are larger than all layers
of a small model together, and a lookup needs few of their rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.directions import Perturbed
from fedjax_fm.models.modules import put

BLOCK = 1 << 21  # entries of an embedding that are drawn at one time for the head


class RowEmbed(nnx.Module):
    """An `nnx.Embed` that makes only those rows that are looked up.

    Args:
      embedding: the table [n, d], an array or `Perturbed`.
    """

    def __init__(self, embedding: nnx.Param):
        self.embedding = embedding

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The rows [..., d] of ids i32[...]; of an id past the end NaN."""
        table = self.embedding.get_value()
        if isinstance(table, Perturbed):
            return table[ids]
        return table.at[ids].get(mode="fill", fill_value=jnp.nan)

    def attend(self, query: jax.Array) -> jax.Array:
        """The tied head: logits of every row of the table.

        A table that has to be drawn is drawn a block of rows at a time.

        Args:
          query: [..., d].

        Returns:
          f32[..., n].
        """
        table = self.embedding.get_value()

        def product(rows):
            return jnp.einsum(
                "...d,vd->...v", query, rows, preferred_element_type=jnp.float32
            )

        if not isinstance(table, Perturbed):
            return product(table)
        n, width = table.shape
        height = min(n, max(1, BLOCK // width))
        n_blocks, left = divmod(n, height)

        def of_block(number):
            return product(table.rows(number * height, height)[...])

        blocks = jax.lax.map(of_block, jnp.arange(n_blocks))
        blocks = jnp.moveaxis(blocks, 0, -2)
        logits = blocks.reshape(*query.shape[:-1], n_blocks * height)
        if left:
            last = product(table.rows(n - left, left)[...])
            logits = jnp.concatenate([logits, last], axis=-1)
        return logits


def read_by_rows(model: nnx.Module) -> nnx.Module:
    """A copy of a model in which every `nnx.Embed` is a `RowEmbed`.

    Names of parameters stay.

    Args:
      model: it stays as it is.

    Raises:
      ValueError: the model itself is an `nnx.Embed`.

    Example:
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.words = nnx.Embed(5, 2, rngs=nnx.Rngs(0))
      >>> type(read_by_rows(Model()).words).__name__
      'RowEmbed'
    """
    if isinstance(model, nnx.Embed):
        raise ValueError(
            f"the model itself, a {type(model).__name__}, cannot be wrapped: put it "
            "into a module"
        )
    model = nnx.clone(model)
    modules: dict[Any, Any] = dict(nnx.iter_modules(model))
    for path, module in modules.items():
        if isinstance(module, nnx.Embed):
            put(modules[path[:-1]], path[-1], RowEmbed(module.embedding))
    return model
