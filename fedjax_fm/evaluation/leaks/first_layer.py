"""What the first layer's projections read of each token."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.evaluation.leaks.embedded import token_table


def first_inputs(model: nnx.Module, length: int) -> jax.Array:
    """The input of the first layer's queries, keys and values, for each token there is.

    Args:
      model: a decoder of Llama's family, GPT-2 or an encoder of BERT's family.
      length: of the text, as far as positions are added to tokens.

    Returns:
      f32[P, V, d]; P is `length`, or 1 where positions come in behind the projections.

    Raises:
      TypeError: another model.

    Example:
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2
      ... )
      >>> first_inputs(models.GPT2LMHeadModel(config, nnx.Rngs(0)), 5).shape
      (5, 30, 8)
    """
    parts: dict[Any, Any] = dict(nnx.iter_modules(model))
    table = token_table(model)
    for part in parts.values():
        if hasattr(part, "embed_tokens") and hasattr(part, "layers"):
            # Through `embed`, which scales some models' tokens.
            embedded = part.embed(jnp.arange(table.shape[0])[None])
            return _first(part.layers.input_layernorm)(embedded)
        if hasattr(part, "wte") and hasattr(part, "wpe"):
            embedded = table[None] + part.wpe(jnp.arange(length))[:, None]
            return _first(part.h.ln_1)(embedded)
        if hasattr(part, "word_embeddings") and hasattr(part, "position_embeddings"):
            return _of_encoder(part, table, length)
    raise TypeError(
        "expected a decoder of Llama's family, GPT-2 or an encoder of BERT's family, got "
        f"a {type(model).__name__}"
    )


def _of_encoder(part: Any, table: jax.Array, length: int) -> jax.Array:
    """Words, positions and the first segment, normalised."""
    first = getattr(part, "first_row", 0) + getattr(part, "first_position", 0)
    places = part.position_embeddings(first + jnp.arange(length))
    embedded = table[None] + places[:, None]
    if hasattr(part, "token_type_embeddings"):
        embedded = embedded + part.token_type_embeddings(jnp.int32(0))
    return part.LayerNorm(embedded)


def _first(stacked: nnx.Module) -> Any:
    """The first of modules that are stacked on a leading axis."""
    graphdef, state = nnx.split(stacked)
    return nnx.merge(graphdef, jax.tree.map(_row, state))


def _row(x: jax.Array) -> jax.Array:
    return x[0]
