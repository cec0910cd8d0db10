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

    tokens: (
        jax.Array
    )  # i32[B, num_beams, max_new_tokens]; the padding id after an answer's end
    lengths: jax.Array  # i32[B, num_beams]; counts the end-of-sequence token
    scores: jax.Array  # f32[B, num_beams]: log probability / length^length_penalty


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
    axis = {0: None, 2: 0}

    def pick(leaf):
        return (
            leaf
            if leaf.ndim == 0
            else jnp.take(leaf, chosen, axis=axis.get(leaf.ndim, 1))
        )

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
    _check(input_ids, attention_mask, cache, max_new_tokens, 0.0, None, None, None)
    checks.whole("num_beams", num_beams, least=1)
    checks.whole("pad_token_id", pad_token_id, least=0)
    checks.real("length_penalty", length_penalty)
    checks.choice("early_stopping", early_stopping, (True, False, "never"))
    batch, ends = input_ids.shape[0], end_ids(eos_token_id)
    # So many that num_beams go on even if each beam offers every end.
    n_candidates = max(2, 1 + ends.size) * num_beams
    first_rows = jnp.arange(batch)[:, None] * num_beams

    def penalty(length):
        return jnp.asarray(length, jnp.float32) ** length_penalty

    def finish(
        state: _State, tokens: jax.Array, scores: jax.Array, ending: jax.Array
    ) -> tuple[Beams, jax.Array]:
        """The best of the answers so far and those among the num_beams best candidates
        that end here.
        """
        new = ending & (jnp.arange(n_candidates) < num_beams)
        allowed = state.hopeful[:, None]
        if early_stopping is True:
            allowed &= ~state.ended.all(axis=1, keepdims=True)
        length = jnp.broadcast_to(state.step + 1, scores.shape)
        found = Beams(
            tokens,
            length,
            jnp.where(new & allowed, scores / penalty(state.step + 1), _NEVER),
        )
        both = jax.tree.map(
            lambda old, new: jnp.concatenate([old, new], axis=1), state.done, found
        )
        _, best = jax.lax.top_k(both.scores, num_beams)
        ended = jnp.concatenate([state.ended, new & allowed], axis=1)
        return jax.tree.map(lambda leaf: _take(leaf, best), both), _take(ended, best)

    def choose(state: _State, logits: jax.Array) -> _State:
        """One more token for every beam, from f32[B, K, V]."""
        vocabulary = logits.shape[-1]
        if n_candidates > num_beams * vocabulary:
            raise ValueError(
                f"{n_candidates} candidates need a vocabulary of more than {vocabulary} tokens"
            )
        total = (
            jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
            + state.scores[..., None]
        )
        scores, index = jax.lax.top_k(total.reshape(batch, -1), n_candidates)
        beam, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
        tokens = _take(state.tokens, beam).at[:, :, state.step].set(token)
        last = state.step + 1 == max_new_tokens
        ending = (token[..., None] == ends).any(axis=-1) | last
        done, ended = finish(state, tokens, scores, ending)

        running, kept = jax.lax.top_k(
            scores + jnp.where(ending, _NEVER, 0.0), num_beams
        )
        longest = (
            max_new_tokens
            if early_stopping == "never" and length_penalty > 0
            else state.step + 1
        )
        worst = jnp.where(ended, done.scores.min(axis=1, keepdims=True), _NEVER)
        hopeful = state.hopeful & (running[:, :1] / penalty(longest) > worst).any(
            axis=1
        )
        cache = _rows_of(state.cache, (first_rows + _take(beam, kept)).reshape(-1))
        return _State(
            step=state.step + 1,
            tokens=_take(tokens, kept),
            scores=running,
            done=done,
            ended=ended,
            hopeful=hopeful,
            stuck=ending.all(),
            cache=cache,
        )

    def going(state: _State) -> jax.Array:
        enough = state.ended.all() if early_stopping is True else False
        return state.hopeful.any() & ~state.stuck & ~jnp.asarray(enough)

    def advance(state: _State) -> _State:
        token = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=2)
        flat = token.reshape(batch * num_beams, 1)
        logits, cache = next_logits(flat, jnp.ones(flat.shape, bool), state.cache)
        return choose(state._replace(cache=cache), logits.reshape(batch, num_beams, -1))

    logits, cache = next_logits(input_ids, attention_mask, cache)
    cache = _rows_of(cache, jnp.repeat(jnp.arange(batch), num_beams))
    shape = (batch, num_beams)
    blank = jnp.full((*shape, max_new_tokens), pad_token_id, jnp.int32)
    # Only the first beam counts at first: the others would offer the same tokens again.
    scores = jnp.broadcast_to(jnp.where(jnp.arange(num_beams) == 0, 0.0, _NEVER), shape)
    none = Beams(blank, jnp.zeros(shape, jnp.int32), jnp.full(shape, _NEVER))
    no, yes = jnp.zeros(shape, bool), jnp.ones(batch, bool)
    start = _State(
        step=jnp.int32(0),
        tokens=blank,
        scores=scores,
        done=none,
        ended=no,
        hopeful=yes,
        stuck=jnp.bool_(False),
        cache=cache,
    )
    state = choose(start, jnp.broadcast_to(logits[:, None], (*shape, logits.shape[-1])))
    return jax.lax.while_loop(going, advance, state).done
