"""Beam search with a key-value cache.

It does what Hugging Face's `generate(num_beams=..., do_sample=False)` does.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.models.generate import _check, end_ids

_NEVER = -1e9  # a score that no text has; finite, as in transformers


class Beams(NamedTuple):
    """The answers of each row, the best first."""

    # i32[B, num_beams, max_new_tokens]; the padding id after an answer's end
    tokens: jax.Array
    lengths: jax.Array  # i32[B, num_beams]; counts the end-of-sequence token
    scores: jax.Array  # f32[B, num_beams]: log probability / length^length_penalty


class _Search(NamedTuple):
    """What stays the same from step to step."""

    ends: jax.Array  # i32[n], ids at any of which an answer ends
    num_beams: int  # K
    max_new_tokens: int  # N
    length_penalty: float
    early_stopping: bool | Literal["never"]

    @property
    def n_candidates(self) -> int:
        """So many that num_beams go on even if each beam offers every end."""
        return max(2, 1 + self.ends.size) * self.num_beams

    def penalty(self, length: Any) -> jax.Array:
        """What the log probability of an answer of this length is divided by."""
        return jnp.asarray(length, jnp.float32) ** self.length_penalty


class _State(NamedTuple):
    """What passes from step to step."""

    step: jax.Array  # i32[], tokens chosen so far
    tokens: jax.Array  # i32[B, K, N] of the beams that go on
    scores: jax.Array  # f32[B, K], their log probabilities
    done: Beams  # the best answers that have ended
    ended: jax.Array  # bool[B, K]: whether a place of `done` holds an answer
    hopeful: jax.Array  # bool[B]: whether a row's answers may still improve
    stuck: jax.Array  # bool[]: every candidate of the last step has ended
    cache: Any


def _take(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Values [B, M, ...] at chosen i32[B, K]: [B, K, ...]."""
    return jax.vmap(lambda row, index: row[index])(values, chosen)


def _rows_of(cache: Any, chosen: jax.Array) -> Any:
    """A cache of other rows, i32[n].

    Scalars hold for all rows, matrices are [B, ...], other arrays [layers, B, ...].
    """
    axis = {2: 0}

    def pick(leaf):
        if leaf.ndim == 0:
            return leaf
        return jnp.take(leaf, chosen, axis=axis.get(leaf.ndim, 1))

    return jax.tree.map(pick, cache)


def beam_search(
    next_logits: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    input_ids: jax.Array,
    attention_mask: jax.Array,
    cache: Any,
    *,
    num_beams: int,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
) -> Beams:
    """Continues prompts by the most likely answers that a beam of `num_beams` finds.

    Scores, candidates and stopping are those of transformers 5, ties between equal
    scores apart. Runs under `jit` and `vmap`; everything but the arrays is static.

    Args:
      next_logits: `(input_ids i32[B, T], attention_mask [B, T], cache) -> (f32[B, V]
        after the last token, cache)`, such as `model.next_logits`.
      input_ids: i32[B, T], padded on the left.
      attention_mask: [B, T], 1 for real tokens.
      cache: an empty one for B rows, such as `model.empty_cache(B, T +
        max_new_tokens)`; the prompt is read once for all beams of a row.
      num_beams: K answers that are kept at each step, and returned.
      max_new_tokens: tokens of the longest answer, at least 1.
      eos_token_id: ends an answer, one id or several; None: no answer ends early.
      pad_token_id: fills answers after their end.
      length_penalty: an answer's score is log p / length^length_penalty; above 0
        favours long answers.
      early_stopping: True ends a row as soon as K answers have ended; False when the
        best beam, at its present length, is below the worst of them; "never" when it
        would be so at every length up to the last.

    Returns:
      `Beams`, the K best answers of each row.

    Raises:
      TypeError, ValueError: an argument out of range or of another type; see
        `generate`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=2, n_head=2
      ... )
      >>> def run(prompts):
      ...     model = models.GPT2LMHeadModel(config, nnx.Rngs(0))
      ...     return models.beam_search(
      ...         model.next_logits, prompts, jnp.ones_like(prompts),
      ...         model.empty_cache(3, 5 + 4), num_beams=2, max_new_tokens=4,
      ...     )
      >>> found = jax.eval_shape(run, jnp.ones((3, 5), jnp.int32))
      >>> found.tokens.shape, found.scores.shape  # traced, not computed
      ((3, 2, 4), (3, 2))
    """
    _check(input_ids, attention_mask, cache, max_new_tokens=max_new_tokens)
    checks.whole("num_beams", num_beams, least=1)
    checks.whole("pad_token_id", pad_token_id, least=0)
    checks.real("length_penalty", length_penalty)
    checks.choice("early_stopping", early_stopping, (True, False, "never"))
    search = _Search(
        ends=end_ids(eos_token_id),
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    batch = input_ids.shape[0]

    def going(state: _State) -> jax.Array:
        enough = state.ended.all() if early_stopping is True else False
        return state.hopeful.any() & ~state.stuck & ~jnp.asarray(enough)

    def advance(state: _State) -> _State:
        token = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=2)
        flat = token.reshape(batch * num_beams, 1)
        logits, cache = next_logits(flat, jnp.ones(flat.shape, bool), state.cache)
        logits = logits.reshape(batch, num_beams, -1)
        return _choose(search, state._replace(cache=cache), logits)

    logits, cache = next_logits(input_ids, attention_mask, cache)
    of_beams = jnp.repeat(jnp.arange(batch), num_beams)
    start = _start(search, batch, pad_token_id, _rows_of(cache, of_beams))
    shape = (batch, num_beams, logits.shape[-1])
    state = _choose(search, start, jnp.broadcast_to(logits[:, None], shape))
    return jax.lax.while_loop(going, advance, state).done


def _start(search: _Search, batch: int, pad_token_id: int, cache: Any) -> _State:
    """The state before the first token; the cache has the prompt, once a beam."""
    shape = (batch, search.num_beams)
    blank = jnp.full((*shape, search.max_new_tokens), pad_token_id, jnp.int32)
    # Only the first beam counts at first: the others would offer the same tokens again.
    first = jnp.arange(search.num_beams) == 0
    scores = jnp.broadcast_to(jnp.where(first, 0.0, _NEVER), shape)
    none = Beams(
        tokens=blank,
        lengths=jnp.zeros(shape, jnp.int32),
        scores=jnp.full(shape, _NEVER),
    )
    return _State(
        step=jnp.int32(0),
        tokens=blank,
        scores=scores,
        done=none,
        ended=jnp.zeros(shape, bool),
        hopeful=jnp.ones(batch, bool),
        stuck=jnp.bool_(False),
        cache=cache,
    )


def _choose(search: _Search, state: _State, logits: jax.Array) -> _State:
    """One more token for every beam, from f32[B, K, V]."""
    batch, _, vocabulary = logits.shape
    if search.n_candidates > search.num_beams * vocabulary:
        raise ValueError(
            f"{search.n_candidates} candidates need a vocabulary of more than "
            f"{vocabulary} tokens"
        )
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    total = log_p + state.scores[..., None]
    scores, index = jax.lax.top_k(total.reshape(batch, -1), search.n_candidates)
    beam, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
    tokens = _take(state.tokens, beam).at[:, :, state.step].set(token)
    last = state.step + 1 == search.max_new_tokens
    ending = (token[..., None] == search.ends).any(axis=-1) | last
    done, ended = _finish(search, state, tokens, scores, ending=ending)

    going_on = scores + jnp.where(ending, _NEVER, 0.0)
    running, kept = jax.lax.top_k(going_on, search.num_beams)
    hopeful = _may_improve(search, state, running, done, ended=ended)
    first_rows = jnp.arange(batch)[:, None] * search.num_beams
    rows = first_rows + _take(beam, kept)
    return _State(
        step=state.step + 1,
        tokens=_take(tokens, kept),
        scores=running,
        done=done,
        ended=ended,
        hopeful=state.hopeful & hopeful,
        stuck=ending.all(),
        cache=_rows_of(state.cache, rows.reshape(-1)),
    )


def _finish(
    search: _Search,
    state: _State,
    tokens: jax.Array,
    scores: jax.Array,
    *,
    ending: jax.Array,
) -> tuple[Beams, jax.Array]:
    """The best answers after this step, and which places hold one.

    They are the best of those so far and of the num_beams best candidates that end
    here.
    """
    new = ending & (jnp.arange(search.n_candidates) < search.num_beams)
    new &= state.hopeful[:, None]
    if search.early_stopping is True:
        new &= ~state.ended.all(axis=1, keepdims=True)
    length = state.step + 1
    found = Beams(
        tokens=tokens,
        lengths=jnp.broadcast_to(length, scores.shape),
        scores=jnp.where(new, scores / search.penalty(length), _NEVER),
    )

    def join(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.concatenate([old, new], axis=1)

    both = jax.tree.map(join, state.done, found)
    _, best = jax.lax.top_k(both.scores, search.num_beams)
    done = jax.tree.map(lambda leaf: _take(leaf, best), both)
    return done, _take(join(state.ended, new), best)


def _may_improve(
    search: _Search,
    state: _State,
    running: jax.Array,
    done: Beams,
    *,
    ended: jax.Array,
) -> jax.Array:
    """Whether a beam that goes on may still beat a row's worst answer, bool[B]."""
    longest = state.step + 1
    if search.early_stopping == "never" and search.length_penalty > 0:
        longest = search.max_new_tokens
    worst = jnp.where(ended, done.scores.min(axis=1, keepdims=True), _NEVER)
    best = running[:, :1] / search.penalty(longest)
    return (best > worst).any(axis=1)
