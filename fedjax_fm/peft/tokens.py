"""Trained embeddings of some tokens beside a frozen table.

This is PEFT's `trainable_token_indices`. Trained rows replace those of the table. Where
the head of a language model is tied to the table, it reads the trained rows, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm.checks import whole
from fedjax_fm.peft.targets import (
    Wrapper,
    find_modules,
    get_module,
    named_modules,
    replace_module,
)

TokenIndices = Sequence[int] | Mapping[str, Sequence[int]]


class TokenRows(Wrapper):
    """An embedding in which some rows are trained.

    Args:
      base: the frozen embedding.
      ids: the n tokens whose rows are trained; `rows` f32[n, d] holds them.
    """

    def __init__(self, base: nnx.Embed, ids: tuple[int, ...]):
        self.base, self.ids = base, ids
        start = base.embedding[...][np.asarray(ids)]
        self.rows = nnx.Param(start.astype(jnp.float32))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """i32[...] -> [..., d]."""
        embedded = self.base(ids)
        place = self._places()[ids]  # [...], -1 for tokens that are not trained
        trained = self.rows[...][place].astype(embedded.dtype)
        return jnp.where((place >= 0)[..., None], trained, embedded)

    @property
    def embedding(self) -> jax.Array:
        """A copy of the table [V, d] with the trained rows, for a tied head."""
        table, ids = self.base.embedding[...], np.asarray(self.ids)
        rows = self.rows[...].astype(table.dtype)
        return table.at[ids].set(rows)

    def _places(self) -> jax.Array:
        """i32[V]: the row of each token, -1 for those that are not trained."""
        n_words, ids = self.base.embedding.shape[0], np.asarray(self.ids)
        numbers = jnp.arange(len(ids), dtype=jnp.int32)
        untrained = jnp.full(n_words, -1, jnp.int32)
        return untrained.at[ids].set(numbers)


def check_token_indices(indices: Any) -> Any:
    """Returns `indices` if they are token ids, each once.

    Args:
      indices: a list of ids, {name of an embedding: such a list}, or None.

    Returns:
      `indices`.

    Raises:
      TypeError, ValueError: something else.
    """
    if indices is None:
        return None
    named = indices if isinstance(indices, Mapping) else {"": indices}
    for ids in named.values():
        listed = isinstance(ids, Sequence | np.ndarray) and not isinstance(ids, str)
        if not listed or not len(ids):
            raise TypeError(
                "expected trainable_token_indices a list of token ids or {name "
                "of an embedding: such a list}, got "
                f"trainable_token_indices={indices!r}"
            )
        for one in ids:
            whole("trainable_token_indices", one, least=0)
        distinct = {int(one) for one in ids}
        if len(distinct) != len(ids):
            raise ValueError(
                f"expected each token once, got trainable_token_indices={indices!r}"
            )
    return indices


def install_tokens(model: nnx.Module, indices: TokenIndices) -> set[tuple]:
    """Lets some tokens of a model's embeddings be trained.

    Args:
      model: changed in place.
      indices: token ids of the model's input embedding, or {ending of an embedding's
        path: token ids}.

    Returns:
      Paths of the trained rows.

    Raises:
      ValueError: no such embedding, or an id outside of the vocabulary.
    """
    if isinstance(indices, Mapping):
        named = indices
    else:
        named = {_input_embedding(model): indices}
    paths = set()
    for name, ids in named.items():
        found = find_modules(model, [name], nnx.Embed, "trainable_token_indices")
        for path, base in found.items():
            n_words = base.embedding.shape[0]
            outside = [int(one) for one in ids if one >= n_words]
            if outside:
                raise ValueError(
                    f"expected ids of a vocabulary of {n_words}, got "
                    f"trainable_token_indices={outside}"
                )
            whole_numbers = tuple(int(one) for one in ids)
            replace_module(model, path, TokenRows(base, whole_numbers))
            paths.add((*path.split("."), "rows"))
    return paths


def _input_embedding(model: nnx.Module) -> str:
    """The path of the embedding of the model's text."""
    modules: dict[str, Any] = dict(named_modules(model))
    tables = [
        module.vocabulary
        for module in modules.values()
        if hasattr(module, "vocabulary")
    ]
    inside = [
        path
        for path, module in modules.items()
        if any(module is table for table in tables)
    ]
    if len(inside) != 1:
        raise ValueError(
            f"expected one embedding of text in a {type(model).__name__}, found "
            f"{inside}; say which by trainable_token_indices={{name: ids}}"
        )
    return inside[0]


def token_modules(model: nnx.Module) -> dict[str, TokenRows]:
    """Finds the embeddings with trained rows.

    Args:
      model: adapted or not.

    Returns:
      {path: module}.
    """
    return {
        path: module
        for path, module in named_modules(model)
        if isinstance(module, TokenRows)
    }


def fold_tokens(model: nnx.Module) -> None:
    """Writes trained rows into their tables.

    Args:
      model: changed in place; its embeddings are plain ones afterwards.
    """
    for path, module in token_modules(model).items():
        base = get_module(model, path).base
        base.embedding[...] = module.embedding
        replace_module(model, path, base)
