"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning.

Lester, Al-Rfou, Constant, 2021, arXiv 2104.08691. p trained vectors stand before the
embedded tokens of a frozen model. Every token sees them; positions run on behind them;
outputs keep the text's shape, so no loss meets them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm.checks import whole
from fedjax_fm.peft.method import Method, head_paths
from fedjax_fm.peft.patterns import HEADS, check_names, check_targets, matches
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import get_module, named_modules, plain_names


class Prompt(nnx.Module):
    """p virtual tokens, `embedding` [p, d]."""

    def __init__(self, embedding: jax.Array):
        self.embedding = nnx.Param(embedding)

    def __call__(self) -> jax.Array:
        return self.embedding[...]


def takes_prompt(model: nnx.Module, at: str | None) -> str:
    """Path of the module that a prompt goes into, see `models.virtual_tokens`."""
    plain = plain_names(model)
    takers = [
        p
        for p, m in named_modules(model)
        if hasattr(m, "prompt") and hasattr(m, "vocabulary")
    ]
    found = [path for path in takers if at is None or matches(plain(path), at)]
    if len(found) != 1:
        names = [plain(path) or "the model itself" for path in takers]
        raise ValueError(
            "expected one module that takes a "
            f"prompt{'' if at is None else f' at {at!r}'}, found {len(found)}; "
            f"there are: {', '.join(names) or 'none'}"
            + (" (choose with at=)" if len(found) > 1 else "")
        )
    return found[0]


@refuses_pefts_words
def prompt_tuning(
    n_tokens: int,
    *,
    init_ids: Sequence[int] | None = None,
    at: str | None = None,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """A trained prompt of `n_tokens` before the text.

    Args:
      n_tokens: p; 0 leaves the model as it is.
      init_ids: p ids of the vocabulary whose embeddings the prompt starts as; default:
        drawn at random.
      at: a regular expression that picks the module, where several take a prompt
        (encoder and decoder).
      modules_to_save: trained in full beside it; by default the head, where the model has one.

    Trains p d numbers. A model takes a prompt if it follows `models.virtual_tokens`.
    """
    whole("n_tokens", n_tokens, least=0)
    for one in () if init_ids is None else init_ids:
        whole("init_ids", one)
    check_names("modules_to_save", modules_to_save)
    if at is not None:
        check_targets("at", at)
    if init_ids is not None and len(init_ids) != n_tokens:
        raise ValueError(
            f"expected init_ids to name n_tokens={n_tokens} tokens, got {len(init_ids)}"
        )

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        heads = head_paths(model, modules_to_save)
        if n_tokens == 0:
            return heads
        path = takes_prompt(model, at)
        owner = get_module(model, path)
        table = owner.vocabulary.embedding[...]
        if (
            init_ids is not None
            and not 0 <= min(init_ids) <= max(init_ids) < table.shape[0]
        ):
            raise ValueError(
                f"expected ids of a vocabulary of {table.shape[0]}, got init_ids={list(init_ids)}"
            )
        ids = (
            jax.random.randint(key, (n_tokens,), 0, table.shape[0])
            if init_ids is None
            else np.asarray(init_ids)
        )
        owner.prompt = Prompt(jnp.take(table, ids, axis=0).astype(jnp.float32))
        return {(*(path.split(".") if path else ()), "prompt", "embedding")} | heads

    return Method("prompt", install)
