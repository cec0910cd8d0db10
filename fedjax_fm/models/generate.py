"""Generation with a key-value cache: prefill, then one token a step.

All is pure and runs under `jit` and `vmap`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks

NextLogits = Callable[[jax.Array, jax.Array, "KVCache"], tuple[jax.Array, "KVCache"]]


class KVCache(NamedTuple):
    """The keys and values of the tokens read so far."""

    keys: jax.Array  # [layers, B, max_length, kv_heads, head_dim], rotated
    values: jax.Array  # [layers, B, max_length, kv_heads, head_dim]
    # bool[B, max_length]; False for padding and for slots not yet written
    valid: jax.Array
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
    """Prompts as one batch, padded on the left, as generation needs it.

    Args:
      rows: n prompts, the token ids of each.
      pad_token_id: fills the rows on the left.
      length: tokens of a row; None: as many as the longest prompt has. Give one length
        for all batches to compile once.

    Returns:
      {"input_ids", "attention_mask"}: int32[n, length].

    Raises:
      TypeError: a row that is no list of token ids.
      ValueError: an empty prompt, or one longer than `length` (cutting would change the
        question).

    Example:
      >>> from fedjax_fm import models
      >>> models.pad_prompts([[5, 8, 13], [21]], pad_token_id=0)["input_ids"]
      array([[ 5,  8, 13],
             [ 0,  0, 21]], dtype=int32)
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
    """The ids i64[n] of one row; ids with a fraction are refused, not cut."""
    one = isinstance(row, (int, np.integer))
    hint = "write [ids] for one prompt" if one else "see `Chat.prompt_ids`"
    ids = np.asarray(row)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(
            f"expected prompt {number} as a list of token ids, got {row!r:.60}; {hint}"
        )
    if ids.size:
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= 2**31:
            wrong = least if least < 0 else most
            raise ValueError(f"prompt {number} has the token id {wrong}")
    return ids.astype(np.int64)


def restrict(
    logits: jax.Array,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """The logits to sample from: scaled, and -inf where a token may not be drawn.

    Order and ties are those of Hugging Face's `TemperatureLogitsWarper`,
    `TopKLogitsWarper` and `TopPLogitsWarper`: values equal to the k-th stay; the
    nucleus is the smallest set of probability >= top_p and never empty.

    Args:
      logits: f[..., V].
      temperature: above 0; the logits are divided by it.
      top_k: tokens that are kept; None: all.
      top_p: probability of the nucleus that is kept; None or 1: all.

    Returns:
      f32[..., V].

    References:
      Holtzman et al., 2019, arXiv 1904.09751, section 3.1.

    Example:
      >>> restrict(jnp.array([0.0, 1.0, 2.0]), temperature=0.5, top_k=2).tolist()
      [-inf, 2.0, 4.0]
    """
    logits = logits.astype(jnp.float32) / temperature
    if top_k is not None:
        kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p is not None and top_p < 1:
        order = jnp.argsort(logits, axis=-1)  # ascending
        ranked = jnp.take_along_axis(logits, order, axis=-1)
        below = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1)
        outside = (below <= 1 - top_p).at[..., -1].set(False)
        ranked = jnp.where(outside, -jnp.inf, ranked)
        back = jnp.argsort(order, axis=-1)
        logits = jnp.take_along_axis(ranked, back, axis=-1)
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

    Runs under `jit` and `vmap`; everything but the arrays is static.

    Args:
      model: a language model of `models`, such as `adapted.model(state.delta)`; or a
        function `(input_ids i32[B, T], attention_mask [B, T], cache) -> (f32[B, V]
        after the last token, cache)`, such as `model.next_logits`.
      input_ids: i32[B, T], padded on the left; without an attention_mask also a list of
        prompts, each a list of token ids, or what `pad_prompts` gives.
      attention_mask: [B, T], 1 for real tokens.
      cache: an empty one, such as `model.empty_cache(B, T + max_new_tokens)`; None: one
        of that length, which only a model can make.
      max_new_tokens: at least 1. Generation stops earlier when every row has met its
        end.
      eos_token_id: ends a row, one id or several, at any of which it ends
        (`chat.eos_token_ids`, `end_tokens(folder)`); None or none: no row ends early.
      pad_token_id: fills the rows after their end.
      temperature: 0 takes the most likely token and needs no key.
      top_k: sample from the k most likely tokens; None: from all.
      top_p: sample from the nucleus of that probability; None: from all.
      key: one key for the batch, folded with the row number, or one key per row [B], so
        that what a row draws does not depend on its neighbours. Token i uses the row's
        key folded with i.

    Returns:
      `Generated`, the new tokens without the prompt.

    Raises:
      TypeError, ValueError: an argument out of range or of another type, prompts not
        padded on the left, a cache too short for the answer.

    References:
      Holtzman et al., 2019, arXiv 1904.09751 (nucleus sampling).

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=2, n_head=2
      ... )
      >>> def run():
      ...     model = models.GPT2LMHeadModel(config, nnx.Rngs(0))
      ...     return models.generate(model, [[5, 8, 13], [21]], max_new_tokens=4)
      >>> jax.eval_shape(run).tokens.shape  # traced, not computed
      (2, 4)
    """
    if attention_mask is None:
        padded = input_ids
        if not isinstance(input_ids, Mapping):
            padded = pad_prompts(input_ids, pad_token_id)
        input_ids = jnp.asarray(padded["input_ids"])
        attention_mask = jnp.asarray(padded["attention_mask"])
    if cache is None:
        input_ids, attention_mask, cache = _started(
            model, input_ids, attention_mask, max_new_tokens
        )
    return generate_further(
        model,
        input_ids,
        attention_mask,
        cache,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        key=key,
    )[0]


def generate_further(
    model: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    cache: KVCache,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
    written: int | jax.Array = 0,
) -> tuple[Generated, KVCache]:
    """As `generate`, and returns the cache, with which generation can go on.

    It goes on with the last token of each row, `tokens[:, -1:]`, as `input_ids`: that
    token was chosen and not yet read. The cache may end early where all rows have.

    Args:
      model: as of `generate`.
      input_ids: i32[B, T], padded on the left; behind what the cache holds.
      attention_mask: [B, T], 1 for real tokens.
      cache: an empty one with room for all that will be generated, or that of the
        earlier call.
      max_new_tokens: of this call.
      eos_token_id: as of `generate`.
      pad_token_id: as of `generate`.
      temperature: as of `generate`.
      top_k: as of `generate`.
      top_p: as of `generate`.
      key: as of `generate`; another one for each call, or the same with `written`.
      written: tokens of these answers that earlier calls have drawn. With it and the
        same key, several calls draw what one long call would.

    Returns:
      (`Generated`, cache).

    Raises:
      TypeError, ValueError: as `generate`. Reading past the cache's end in a further
        call is not noticed.
    """
    next_logits: NextLogits = getattr(model, "next_logits", model)
    _check(
        input_ids,
        attention_mask,
        cache,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        key=key,
    )
    batch = input_ids.shape[0]
    ends = end_ids(eos_token_id)
    checks.whole("pad_token_id", pad_token_id, least=0)
    keys = None if key is None else _row_keys(key, batch)

    def choose(logits: jax.Array, step: jax.Array) -> jax.Array:
        if keys is None or temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        allowed = restrict(logits, temperature, top_k, top_p)
        place = written + step
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        drawn = jax.vmap(jax.random.categorical)(folded, allowed)
        return drawn.astype(jnp.int32)

    def put(tokens: jax.Array, done: jax.Array, logits: jax.Array, step: jax.Array):
        token = jnp.where(done, pad_token_id, choose(logits, step))
        tokens = tokens.at[:, step].set(token)
        done = done | (token[:, None] == ends).any(axis=1)
        return tokens, done, token

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
    no_row = jnp.zeros(batch, bool)
    tokens, done, token = put(blank, no_row, logits, jnp.int32(0))
    lengths = jnp.ones(batch, jnp.int32)
    carry = (jnp.int32(1), tokens, done, lengths, token, cache)
    carry = jax.lax.while_loop(running, advance, carry)
    _, tokens, _, lengths, _, cache = carry
    return Generated(tokens, lengths), cache


def _started(
    model: Any, input_ids: jax.Array, attention_mask: jax.Array, n: int
) -> tuple[jax.Array, jax.Array, KVCache]:
    """The input, its mask and an empty cache; an encoder-decoder reads it first."""
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
    """The ids that end a row, as an array.

    Args:
      eos_token_id: one id, several, or None for none.

    Returns:
      i32[n].

    Raises:
      TypeError, ValueError: one of them is no whole number >= 0, and would never be
        met.

    Example:
      >>> end_ids([2, 7]).tolist(), end_ids(None).tolist()
      ([2, 7], [])
    """
    if isinstance(eos_token_id, (str, bytes, Mapping)):
        raise TypeError(
            "expected eos_token_id as one id, several or None, got "
            f"eos_token_id={eos_token_id!r}"
        )
    if isinstance(eos_token_id, (np.ndarray, jax.Array)):
        eos_token_id = np.asarray(eos_token_id).tolist()
    several: Iterable[int]
    if isinstance(eos_token_id, Iterable):
        several = eos_token_id
    else:
        several = [] if eos_token_id is None else [eos_token_id]
    ids = [int(checks.whole("eos_token_id", i, least=0)) for i in several]
    return jnp.asarray(ids, jnp.int32).reshape(-1)


def _row_keys(key: jax.Array, batch: int) -> jax.Array:
    """One key a row, of one for all or of as many as there are rows."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            "expected a key of jax.random.key, got an array "
            f"{key.dtype}{list(key.shape)}"
        )
    if key.shape == ():
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        return fold(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(
            f"expected one key or {batch} keys, one per row, got keys of shape "
            f"{list(key.shape)}"
        )
    return key


def _check(
    input_ids,
    attention_mask,
    cache,
    *,
    max_new_tokens,
    temperature=0.0,
    top_k=None,
    top_p=None,
    key=None,
) -> None:
    """Checks what `generate` and `beam_search` were given."""
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
    traced = isinstance(attention_mask, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]
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
            f"temperature={temperature} samples and needs a key; temperature=0 is "
            "greedy"
        )
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ValueError(
            f"top_k={top_k}, top_p={top_p} do nothing at temperature=0; give a "
            "temperature and a key"
        )
