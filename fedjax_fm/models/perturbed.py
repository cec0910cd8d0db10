"""Embeddings whose parameters need not be whole arrays.

All other modules read a parameter as `parameter[...]`, which draws a `Perturbed` one
there and then, one matrix of one layer at a time. Embeddings are larger than all layers
of a small model together, and a lookup needs few of their rows.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.directions import Perturbed
from fedjax_fm.peft.targets import named_modules, replace_module

BLOCK = 1 << 21  # entries of an embedding that are drawn at one time for the head


class RowEmbed(nnx.Module):
    """`nnx.Embed` that makes those rows only which are looked up: ids i32[...] -> [..., d].

    An id past the end is NaN.
    """

    def __init__(self, embedding: nnx.Param):
        self.embedding = embedding

    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.embedding.get_value()
        return (
            table[ids]
            if isinstance(table, Perturbed)
            else table.at[ids].get(mode="fill", fill_value=jnp.nan)
        )

    def attend(self, query: jax.Array) -> jax.Array:
        """The tied head: [..., d] -> logits f32[..., V], a block of rows at a time
        where they have to be drawn.
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
        blocks = jax.lax.map(
            lambda i: product(table.rows(i * height, height)[...]),
            jnp.arange(n // height),
        )
        logits = jnp.moveaxis(blocks, 0, -2).reshape(
            *query.shape[:-1], n // height * height
        )
        if n % height:
            logits = jnp.concatenate(
                [logits, product(table.rows(n - n % height, n % height)[...])], axis=-1
            )
        return logits


def read_by_rows(model: nnx.Module) -> nnx.Module:
    """A copy of `model` in which every `nnx.Embed` is a `RowEmbed`; names of parameters stay."""
    model = nnx.clone(model)
    for path, module in list(named_modules(model)):
        if isinstance(module, nnx.Embed):
            replace_module(model, path, RowEmbed(module.embedding))
    return model
