"""Some tokens of an embedding, trained beside a frozen table: PEFT's `trainable_token_indices`.

Rows of the table are replaced, not added to. Where the head of a language model is tied
to the table, it reads the trained rows, too.
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
    """An embedding of which the rows `ids` are `rows` f32[n, d], a parameter of their own."""

    def __init__(self, base: nnx.Embed, ids: tuple[int, ...]):
        self.base, self.ids = base, ids
        self.rows = nnx.Param(base.embedding[...][np.asarray(ids)].astype(jnp.float32))

    def __call__(self, ids: jax.Array) -> jax.Array:
        embedded = self.base(ids)
        place = self._places()[ids]  # [...], -1 for tokens that are not trained
        trained = self.rows[...][place].astype(embedded.dtype)
        return jnp.where((place >= 0)[..., None], trained, embedded)

    @property
    def embedding(self) -> jax.Array:
        """The whole table [V, d] with the trained rows in it, a copy: what a tied head reads."""
        table = self.base.embedding[...]
        return table.at[np.asarray(self.ids)].set(self.rows[...].astype(table.dtype))

    def _places(self) -> jax.Array:
        """i32[V]: which row a token has."""
        n_rows, n_words = len(self.ids), self.base.embedding.shape[0]
        return (
            jnp.full(n_words, -1, jnp.int32)
            .at[np.asarray(self.ids)]
            .set(jnp.arange(n_rows, dtype=jnp.int32))
        )


def check_token_indices(indices: Any) -> Any:
    """`indices`, if they are whole numbers, in one list or in one for each embedding."""
    if indices is None:
        return None
    named = indices if isinstance(indices, Mapping) else {"": indices}
    for ids in named.values():
        if (
            isinstance(ids, str)
            or not isinstance(ids, Sequence | np.ndarray)
            or not len(ids)
        ):
            raise TypeError(
                "expected trainable_token_indices a list of token ids or {name "
                "of an embedding: such a list}, got "
                f"trainable_token_indices={indices!r}"
            )
        for one in ids:
            whole("trainable_token_indices", one, least=0)
        if len(set(map(int, ids))) != len(ids):
            raise ValueError(
                f"expected each token once, got trainable_token_indices={indices!r}"
            )
    return indices


def install_tokens(model: nnx.Module, indices: TokenIndices) -> set[tuple]:
    """Puts trained rows around embeddings, in place; the paths of the rows.

    Args:
      indices: token ids of the model's input embedding, or {ending of an embedding's
        path: token ids}.

    Raises:
      ValueError: no such embedding, or an id outside of the vocabulary.
    """
    named = (
        indices if isinstance(indices, Mapping) else {_input_embedding(model): indices}
    )
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
            replace_module(model, path, TokenRows(base, tuple(map(int, ids))))
            paths.add((*path.split("."), "rows"))
    return paths


def _input_embedding(model: nnx.Module) -> str:
    """Path of the embedding that the model's text goes through."""
    readers: dict[str, Any] = {
        path: module
        for path, module in named_modules(model)
        if hasattr(module, "vocabulary")
    }
    inside = [
        p
        for p, m in named_modules(model)
        if any(m is reader.vocabulary for reader in readers.values())
    ]
    if len(inside) != 1:
        raise ValueError(
            f"expected one embedding of text in a {type(model).__name__}, found "
            f"{inside}; say which by trainable_token_indices={{name: ids}}"
        )
    return inside[0]


def token_modules(model: nnx.Module) -> dict[str, TokenRows]:
    """{path: embedding with trained rows}."""
    return {
        path: module
        for path, module in named_modules(model)
        if isinstance(module, TokenRows)
    }


def fold_tokens(model: nnx.Module) -> None:
    """Writes trained rows into their tables, in place."""
    for path, module in token_modules(model).items():
        base = get_module(model, path).base
        base.embedding[...] = module.embedding
        replace_module(model, path, base)
