"""Prompt tuning: trained vectors before the embedded tokens of a frozen model.

References:
  Lester, Al-Rfou, Constant (2021). The Power of Scale for Parameter-Efficient Prompt
  Tuning. arXiv 2104.08691.
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
    """Trained embeddings of p virtual tokens.

    Args:
      embedding: f32[p, d].
    """

    def __init__(self, embedding: jax.Array):
        self.embedding = nnx.Param(embedding)

    def __call__(self) -> jax.Array:
        """Returns f32[p, d]."""
        return self.embedding[...]


def takes_prompt(model: nnx.Module, at: str | None) -> str:
    """Finds the module that a prompt goes into, see `models.virtual_tokens`.

    Args:
      model: adapted or not.
      at: a regular expression on its path; None: the model has one.

    Returns:
      Its path.

    Raises:
      ValueError: there is none, or more than one.
    """
    plain = plain_names(model)
    takers = [
        p
        for p, m in named_modules(model)
        if hasattr(m, "prompt") and hasattr(m, "vocabulary")
    ]
    found = [path for path in takers if at is None or matches(plain(path), at)]
    if len(found) != 1:
        names = [plain(path) or "the model itself" for path in takers]
        where = "" if at is None else f" at {at!r}"
        hint = " (choose with at=)" if len(found) > 1 else ""
        raise ValueError(
            f"expected one module that takes a prompt{where}, found {len(found)}; "
            f"there are: {', '.join(names) or 'none'}{hint}"
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
    """Prompt tuning: trains p vectors before the embedded tokens of the text.

    Every token sees them, and the positions of the text begin behind them. Outputs keep
    the shape of the text, so that losses do not change. There are p d trained numbers.
    A model takes a prompt if it follows `models.virtual_tokens`.

    Args:
      n_tokens: p; 0 leaves the model as it is.
      init_ids: i32[p], ids of the vocabulary whose embeddings are the initial values;
        None draws the ids at random.
      at: a regular expression that picks the module, where several take a prompt
        (encoder and decoder). None: the model has one.
      modules_to_save: modules that are trained in full; by default the head, where the
        model has one.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for a model that
        takes no prompt, or ids outside of its vocabulary.

    References:
      Lester, Al-Rfou, Constant (2021), arXiv 2104.08691, section 2.

    Example:
      >>> from fedjax_fm import models, peft
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.prompt_tuning(3, init_ids=[4, 5, 6]))
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'model': {'prompt': {'embedding': (3, 8)}}}
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
        n_words = table.shape[0]
        if init_ids is None:
            ids = jax.random.randint(key, (n_tokens,), 0, n_words)
        elif 0 <= min(init_ids) <= max(init_ids) < n_words:
            ids = np.asarray(init_ids)
        else:
            raise ValueError(
                f"expected ids of a vocabulary of {n_words}, got "
                f"init_ids={list(init_ids)}"
            )
        # As the first layer reads these tokens: some models scale their table.
        has_scale = hasattr(owner, "embed")
        start = owner.embed(ids) if has_scale else jnp.take(table, ids, axis=0)
        owner.prompt = Prompt(start.astype(jnp.float32))
        above = path.split(".") if path else ()
        return {(*above, "prompt", "embedding")} | heads

    return Method("prompt", install)
