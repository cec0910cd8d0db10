"""Generation with a key-value cache: prefill, then one token a step, pure, for `jit` and `vmap`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks

NextLogits = Callable[[jax.Array, jax.Array, "KVCache"], tuple[jax.Array, "KVCache"]]


class KVCache(NamedTuple):
    """What attention remembers of the tokens read so far."""

    keys: jax.Array  # [layers, B, max_length, kv_heads, head_dim], rotated
    values: jax.Array  # [layers, B, max_length, kv_heads, head_dim]
    valid: (
        jax.Array
    )  # bool[B, max_length]; False for padding and for slots not yet written
    # i32[], slots written; the same for all rows, because prompts are padded on the
    # left
    length: jax.Array


class Generated(NamedTuple):
    """New tokens, without the prompt."""

    tokens: jax.Array  # i32[B, max_new_tokens]; the padding id after a row's end
    lengths: jax.Array  # i32[B]; counts the end-of-sequence token


def pad_prompts(
    rows: Sequence[Sequence[int]], pad_token_id: int, length: int | None = None
) -> dict[str, np.ndarray]:
    """{"input_ids", "attention_mask"}.

    Int32[n, length], padded on the left, as generation needs it.

    Args:
      rows: n prompts, the token ids of each.
      pad_token_id: fills the rows on the left.
      length: default the longest row's; give one length for all batches to compile once.

    Raises:
      TypeError: a row that is no list of token ids.
      ValueError: an empty prompt, or one longer than `length` (cutting would change the question).
    """
    checks.whole("pad_token_id", pad_token_id, least=0)
    prompts = [_prompt(number, row) for number, row in enumerate(rows)]
    if length is None:
        length = max((len(row) for row in prompts), default=0)
    else:
        checks.whole("length", length, least=1)
    for number, row in enumerate(prompts):
        if not 0 < len(row) <= length:
            raise ValueError(
                f"prompt {number} has {len(row)} tokens; expected 1 to {length}"
            )
    ids = np.full((len(prompts), length), pad_token_id, np.int32)
    mask = np.zeros((len(prompts), length), np.int32)
    for number, row in enumerate(prompts):
        ids[number, length - len(row) :], mask[number, length - len(row) :] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def _prompt(number: int, row: Sequence[int]) -> np.ndarray:
    """i64[n] of a row of ids; a number with a fraction would lose it in an array of integers."""
    hint = (
        "write [ids] for one prompt"
        if isinstance(row, (int, np.integer))
        else "see `Chat.prompt_ids`"
    )
    ids = np.asarray(row)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(
            f"expected prompt {number} as a list of token ids, got {row!r:.60}; {hint}"
        )
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < 2**31:
        raise ValueError(
            f"prompt {number} has the token id {ids.min() if ids.min() < 0 else ids.max()}"
        )
    return ids.astype(np.int64)


def restrict(
    logits: jax.Array,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Logits f32[..., V] to sample from.

    Divided by the temperature, -inf outside the top k and the nucleus.

    Order and ties as in Hugging Face's `TemperatureLogitsWarper`, `TopKLogitsWarper`,
    `TopPLogitsWarper`: values equal to the k-th stay; the nucleus is the smallest set
    of probability >= top_p and never empty. Holtzman et al., 2019, arXiv 1904.09751.
    """
    logits = logits.astype(jnp.float32) / temperature
    if top_k is not None:
        kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p is not None and top_p < 1:
        order = jnp.argsort(logits, axis=-1)  # ascending
        ranked = jnp.take_along_axis(logits, order, axis=-1)
        outside = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1) <= 1 - top_p
        outside = outside.at[..., -1].set(False)
        ranked = jnp.where(outside, -jnp.inf, ranked)
        logits = jnp.take_along_axis(ranked, jnp.argsort(order, axis=-1), axis=-1)
    return logits


def generate(
    model: Any,
    input_ids: Any,
    attention_mask: jax.Array | None = None,
    cache: KVCache | None = None,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
) -> Generated:
    """Continues prompts, greedily (temperature 0) or by sampling.

    Args:
      model: a language model of `models`, such as `adapted.model(state.delta)`; or a
        function `(input_ids i32[B, T], attention_mask [B, T], cache) -> (f32[B, V]
        after the last token, cache)`, such as `model.next_logits`.
      input_ids: i32[B, T], padded on the left; without an attention_mask also a list of
        prompts, each a list of token ids, or what `pad_prompts` gives.
      attention_mask: [B, T], 1 for real tokens.
      cache: an empty one, such as `model.empty_cache(B, T + max_new_tokens)`; default:
        one of that length, which only a model can make.
      max_new_tokens: at least 1. Generation stops earlier when every row has met its end.
      eos_token_id: ends a row, one id or several, at any of which it ends
        (`chat.eos_token_ids`, `end_tokens(folder)`); None or none: no row ends early.
      pad_token_id: fills the rows after their end.
      temperature: 0 takes the most likely token and needs no key.
      top_k, top_p: sample from the k most likely tokens, from the nucleus of that probability.
      key: one key for the batch, folded with the row number, or one key per row [B], so
        that what a row draws does not depend on its neighbours. Token i uses the row's
        key folded with i.

    Raises:
      TypeError, ValueError: an argument out of range or of another type, prompts not
        padded on the left, a cache too short for the answer.

    Runs under `jit` and `vmap`; everything but the arrays is static.

    Example:
      `models.generate(model, [[5, 8, 13], [21]], max_new_tokens=20, eos_token_id=2).tokens`
    """
    if attention_mask is None:
        padded = (
            input_ids
            if isinstance(input_ids, Mapping)
            else pad_prompts(input_ids, pad_token_id)
        )
        input_ids, attention_mask = (
            jnp.asarray(padded[name]) for name in ("input_ids", "attention_mask")
        )
    if cache is None:
        input_ids, attention_mask, cache = _started(
            model, input_ids, attention_mask, max_new_tokens
        )
    next_logits: NextLogits = getattr(model, "next_logits", model)
    _check(
        input_ids, attention_mask, cache, max_new_tokens, temperature, top_k, top_p, key
    )
    batch = input_ids.shape[0]
    ends = end_ids(eos_token_id)
    checks.whole("pad_token_id", pad_token_id, least=0)
    keys = None if key is None else _row_keys(key, batch)

    def choose(logits: jax.Array, step: jax.Array) -> jax.Array:
        if keys is None or temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        allowed = restrict(logits, temperature, top_k, top_p)
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return jax.vmap(jax.random.categorical)(folded, allowed).astype(jnp.int32)

    def put(tokens: jax.Array, done: jax.Array, logits: jax.Array, step: jax.Array):
        token = jnp.where(done, pad_token_id, choose(logits, step))
        return (
            tokens.at[:, step].set(token),
            done | (token[:, None] == ends).any(axis=1),
            token,
        )

    def running(carry) -> jax.Array:
        step, _, done, _, _, _ = carry
        return (step < max_new_tokens) & ~done.all()

    def advance(carry):
        step, tokens, done, lengths, token, cache = carry
        logits, cache = next_logits(token[:, None], jnp.ones((batch, 1), bool), cache)
        lengths = lengths + ~done
        tokens, done, token = put(tokens, done, logits, step)
        return step + 1, tokens, done, lengths, token, cache

    logits, cache = next_logits(input_ids, attention_mask, cache)
    blank = jnp.full((batch, max_new_tokens), pad_token_id, jnp.int32)
    tokens, done, token = put(blank, jnp.zeros(batch, bool), logits, jnp.int32(0))
    carry = (jnp.int32(1), tokens, done, jnp.ones(batch, jnp.int32), token, cache)
    _, tokens, _, lengths, _, _ = jax.lax.while_loop(running, advance, carry)
    return Generated(tokens, lengths)


def _started(
    model: Any, input_ids: jax.Array, attention_mask: jax.Array, n: int
) -> tuple[jax.Array, jax.Array, KVCache]:
    """(input_ids, attention_mask, empty cache) of a model.

    An encoder-decoder reads the prompt first.
    """
    checks.whole("max_new_tokens", n, least=1)
    if hasattr(model, "start"):
        return model.start(input_ids, attention_mask, n)
    if not hasattr(model, "empty_cache"):
        raise TypeError(
            "expected a language model, or a cache beside a function, got "
            f"model={getattr(model, '__name__', type(model).__name__)}"
        )
    rows, length = input_ids.shape
    return input_ids, attention_mask, model.empty_cache(rows, length + n)


def end_ids(eos_token_id: int | Sequence[int] | None) -> jax.Array:
    """i32[n] of the ids that end a row.

    Raises:
      TypeError, ValueError: one of them is no whole number >= 0, and would never be met.
    """
    if isinstance(eos_token_id, (str, bytes, Mapping)):
        raise TypeError(
            f"expected eos_token_id as one id, several or None, got eos_token_id={eos_token_id!r}"
        )
    if isinstance(eos_token_id, (np.ndarray, jax.Array)):
        eos_token_id = np.asarray(eos_token_id).tolist()
    several = (
        eos_token_id
        if isinstance(eos_token_id, Iterable)
        else []
        if eos_token_id is None
        else [eos_token_id]
    )
    ids = [int(checks.whole("eos_token_id", i, least=0)) for i in several]
    return jnp.asarray(ids, jnp.int32).reshape(-1)


def _row_keys(key: jax.Array, batch: int) -> jax.Array:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"expected a key of jax.random.key, got an array {key.dtype}{list(key.shape)}"
        )
    if key.shape == ():
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(
            f"expected one key or {batch} keys, one per row, got keys of shape {list(key.shape)}"
        )
    return key


def _check(
    input_ids, attention_mask, cache, max_new_tokens, temperature, top_k, top_p, key
) -> None:
    length, room = input_ids.shape[-1], cache.valid.shape[-1]
    checks.whole("max_new_tokens", max_new_tokens, least=1)
    if length + max_new_tokens > room:
        raise ValueError(
            f"{length} prompt tokens and max_new_tokens={max_new_tokens} need "
            f"{length + max_new_tokens} cache slots, got {room}; make the cache "
            "longer or the prompt shorter"
        )
    if (
        attention_mask.shape != input_ids.shape
        or cache.valid.shape[0] != input_ids.shape[0]
    ):
        raise ValueError(
            f"input_ids {list(input_ids.shape)}, attention_mask "
            f"{list(attention_mask.shape)} and the cache's {cache.valid.shape[0]} "
            "rows do not fit each other"
        )
    # The mask's values are known only outside of jit.
    # pyright: ignore[reportAttributeAccessIssue]
    traced = isinstance(attention_mask, jax.core.Tracer)
    if not traced and not np.asarray(attention_mask)[:, -1].all():
        raise ValueError(
            "prompts must be padded on the left and not be empty; see pad_prompts"
        )
    checks.real("temperature", temperature, least=0)
    if top_k is not None:
        checks.whole("top_k", top_k, least=1)
    if top_p is not None:
        checks.real("top_p", top_p, above=0, most=1)
    if temperature > 0 and key is None:
        raise ValueError(
            f"temperature={temperature} samples and needs a key; temperature=0 is greedy"
        )
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ValueError(
            f"top_k={top_k}, top_p={top_p} do nothing at temperature=0; give a "
            "temperature and a key"
        )
