"""How likely a language model finds texts: continuations, and whole texts.

Requests are token ids. They are sorted by length and padded to powers of two, so that a
model compiles once a width, whatever the requests; its weights are an operand of the
program, and other weights of the same model compile nothing. What a request gets does
not depend on its neighbours.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.evaluation.buckets import doubling_batches
from fedjax_fm.evaluation.encoder_decoder import (
    is_encoder_decoder,
    scores_of_pairs,
    side_length,
)
from fedjax_fm.models.language_modeling import IGNORED

Ids = Sequence[int]


class Likelihoods(NamedTuple):
    """Log-likelihoods of n continuations.

    Attributes:
      sums: f64[n], sum over a continuation's tokens of log p, in nats.
      greedy: bool[n], whether greedy decoding would write exactly this continuation.
      tokens: i64[n], tokens of the continuation.
    """

    sums: np.ndarray
    greedy: np.ndarray
    tokens: np.ndarray


def loglikelihood(
    model: Any,
    requests: Sequence[tuple[Ids, Ids]],
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    chunk: int = 128,
) -> Likelihoods:
    """Scores continuations of contexts.

        sum_t log p(continuation_t | context, continuation_<t)

    A context that is too long for the model is cut on the left, as lm-eval's `hf` model
    does: the last `max_length + 1` tokens of context and continuation are kept, of
    which the last is predicted only. Of an encoder-decoder the encoder reads the last
    `max_length` tokens of the context, and the decoder the continuation.

    Args:
      model: a language model of `models`, such as `adapted.model(state.delta)`.
      requests: n pairs (ids of the context, ids of the continuation), neither empty; a
        text without a context takes the model's first token as one.
      batch_size: requests that are computed at once.
      max_length: tokens that the model reads at once, of an encoder-decoder on either
        side; None: its whole context, of an encoder-decoder 512.
      chunk: positions whose logits exist at one time.

    Returns:
      `Likelihoods`, in the order of the requests.

    Raises:
      TypeError: a model without a head, or ids that are no numbers.
      ValueError: an empty context or continuation, a continuation longer than
        `max_length`, a token that the model does not know; names the request.

    References:
      Gao et al., 2023, The Language Model Evaluation Harness, `loglikelihood`.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2
      ... )
      >>> model = models.GPT2LMHeadModel(config, nnx.Rngs(0))
      >>> found = loglikelihood(model, [([5, 8], [13, 21]), ([5], [8])], batch_size=2)
      >>> found.sums.shape, found.tokens.tolist()
      ((2,), [2, 1])
    """
    checks.whole("chunk", chunk, least=1)
    if is_encoder_decoder(model):
        return _of_two_sides(model, requests, batch_size, max_length, chunk)
    max_length = checked_length(model, max_length)
    vocabulary = model.config.vocab_size
    pairs = [
        _pair(number, request, max_length, vocabulary)
        for number, request in enumerate(requests)
    ]
    sums, greedy = np.zeros(len(pairs)), np.zeros(len(pairs), bool)
    tokens = np.array([n for _, n in pairs], np.int64)
    lengths = np.array([len(ids) - 1 for ids, _ in pairs], np.int64)
    graphdef, weights = nnx.split(model)
    for width, rows, padded in doubling_batches(lengths, batch_size, max_length):
        batch = _batch([pairs[row] for row in padded], width)
        log_p, chosen = _scored(graphdef, weights, *batch, chunk=chunk)
        own = slice(len(rows))  # the rest fills the batch
        sums[rows] = np.asarray(log_p, np.float64)[own].sum(axis=1)
        greedy[rows] = np.asarray(chosen)[own].all(axis=1)
    _check_known(sums)
    return Likelihoods(sums, greedy, tokens)


def _of_two_sides(
    model: Any,
    requests: Sequence[tuple[Ids, Ids]],
    batch_size: int,
    max_length: int | None,
    chunk: int,
) -> Likelihoods:
    """Scores of an encoder-decoder."""
    most, vocabulary = side_length(max_length), model.config.vocab_size
    pairs = []
    for number, request in enumerate(requests):
        context, answer = _two(number, request, most, vocabulary)
        pairs.append((context[-most:], answer))
    scored = _scorer(chunk)
    sums, greedy = scores_of_pairs(
        model, pairs, batch_size=batch_size, most=most, scored=scored
    )
    _check_known(sums)
    tokens = np.array([len(answer) for _, answer in pairs], np.int64)
    return Likelihoods(sums, greedy, tokens)


@functools.cache
def _scorer(chunk: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`_of_labels` of that many positions, the same object for the same number."""
    return functools.partial(_of_labels, chunk=chunk)


def loglikelihood_rolling(
    model: Any,
    texts: Sequence[Ids],
    *,
    prefix_token_id: int,
    batch_size: int = 16,
    max_length: int | None = None,
    chunk: int = 128,
) -> np.ndarray:
    """Scores whole texts, each token once.

    The sum is -n log(perplexity) of a text of n tokens. Texts longer than the model's
    context are read in windows, see `rolling_windows`.

    Args:
      model: as of `loglikelihood`.
      texts: n texts, the token ids of each; an empty one has log-likelihood 0.
      prefix_token_id: what comes before the first token: the model's token of
        beginning, else of end.
      batch_size: windows that are computed at once.
      max_length: tokens that the model reads at once; None: its whole context.
      chunk: positions whose logits exist at one time.

    Returns:
      f64[n], in nats.

    Raises:
      TypeError, ValueError: as `loglikelihood`; an encoder-decoder, which gives no
        probability of a text by itself.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=4, n_embd=8, n_layer=1, n_head=2
      ... )
      >>> model = models.GPT2LMHeadModel(config, nnx.Rngs(0))
      >>> loglikelihood_rolling(model, [range(9), []], prefix_token_id=0).shape
      (2,)
    """
    checks.whole("prefix_token_id", prefix_token_id, least=0)
    if is_encoder_decoder(model):
        raise TypeError(
            f"a {type(model).__name__} gives the probability of an answer to a prompt, "
            "and none of a whole text: use `loglikelihood`"
        )
    max_length = checked_length(model, max_length)
    requests: list[tuple[Ids, Ids]] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        ids = token_ids(f"text {number}", text, model.config.vocab_size)
        windows = rolling_windows(ids.tolist(), prefix_token_id, max_length)
        requests += windows
        owners += [number] * len(windows)
    how: dict[str, int] = {"batch_size": batch_size, "chunk": chunk}
    found = loglikelihood(model, requests, max_length=max_length, **how)
    return np.bincount(owners, found.sums, minlength=len(texts)).astype(np.float64)


def rolling_windows(
    ids: Ids, prefix_token_id: int, max_length: int
) -> list[tuple[Ids, Ids]]:
    """A text as requests of `loglikelihood` in which each token is predicted once.

    The first window predicts `max_length` tokens after the prefix. Each further one
    predicts the next `max_length`; the last, which has fewer left, takes the tokens
    before them as its context, so that it is full, too.

    Args:
      ids: of the text.
      prefix_token_id: what comes before the first token.
      max_length: tokens that the model reads at once.

    Returns:
      Pairs (context, continuation), the windows of lm-eval's
      `get_rolling_token_windows` with a context of one token.

    Example:
      >>> for window in rolling_windows(range(10), prefix_token_id=-1, max_length=4):
      ...     print(*window)
      [-1] [0, 1, 2, 3]
      [3] [4, 5, 6, 7]
      [5, 6, 7] [8, 9]
    """
    ids = list(ids)
    windows: list[tuple[Ids, Ids]] = []
    for begin in range(0, len(ids), max_length):
        end = min(begin + max_length, len(ids))
        first = max(end - max_length - 1, 0)
        context = ids[first:begin] if begin else [prefix_token_id]
        windows.append((context, ids[begin:end]))
    return windows


def context_length(model: Any) -> int:
    """Tokens of text that a causal language model reads at once.

    Args:
      model: a causal language model of `models`; a trained prompt or prefix takes its
        part of the context.

    Raises:
      TypeError: another kind of model.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2
      ... )
      >>> context_length(models.GPT2LMHeadModel(config, nnx.Rngs(0)))
      16
    """
    decoder = getattr(model, "model", getattr(model, "transformer", None))
    needed = ("hidden", "head", "next_logits", "empty_cache")
    if decoder is None or not all(hasattr(model, name) for name in needed):
        raise TypeError(
            "expected a causal language model, such as models.LlamaForCausalLM or "
            f"models.GPT2LMHeadModel, got a {type(model).__name__}"
        )
    config = model.config
    whole = getattr(config, "max_position_embeddings", None) or config.n_positions
    n_prompt = 0 if decoder.prompt is None else decoder.prompt().shape[0]
    return whole - decoder.first_position - n_prompt


def checked_length(model: Any, max_length: int | None) -> int:
    """The number of tokens that are read at once.

    Args:
      model: a causal language model of `models`.
      max_length: what was asked for; None: the model's whole context.

    Raises:
      TypeError: another kind of model, or no whole number.
      ValueError: more tokens than the model's context.
    """
    whole = context_length(model)
    if max_length is None:
        return whole
    checks.whole("max_length", max_length, least=1)
    if max_length > whole:
        raise ValueError(
            f"max_length={max_length} exceeds the model's context of {whole} tokens"
        )
    return max_length


def token_ids(name: str, ids: Any, vocabulary: int) -> np.ndarray:
    """The ids of a text, checked.

    Args:
      name: of the text, for messages.
      ids: whole numbers.
      vocabulary: tokens that the model knows.

    Returns:
      i64[n].

    Raises:
      TypeError: no list of whole numbers.
      ValueError: a token that the model does not know.
    """
    found = np.asarray(ids)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise TypeError(f"expected {name} as a list of token ids, got {ids!r:.60}")
    found = found.astype(np.int64)
    unknown = found[(found < 0) | (found >= vocabulary)]
    if unknown.size:
        raise ValueError(
            f"{name} has the token id {unknown[0]}; the model knows 0 to "
            f"{vocabulary - 1}"
        )
    return found


def _pair(
    number: int, request: tuple[Ids, Ids], max_length: int, vocabulary: int
) -> tuple[np.ndarray, int]:
    """(ids of context and continuation, cut on the left; tokens of the latter)."""
    context, continuation = _two(number, request, max_length, vocabulary)
    whole = np.concatenate([context, continuation])
    return whole[-(max_length + 1) :], continuation.size


def _two(
    number: int, request: tuple[Ids, Ids], max_length: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids of the context, ids of the continuation), checked."""
    name = f"request {number}"
    if not isinstance(request, (tuple, list)) or len(request) != 2:
        raise TypeError(
            f"expected {name} as a pair (context ids, continuation ids), got "
            f"{request!r:.60}"
        )
    context = token_ids(f"the context of {name}", request[0], vocabulary)
    continuation = token_ids(f"the continuation of {name}", request[1], vocabulary)
    if not context.size:
        raise ValueError(
            f"{name} has an empty context: give the token with which the model's texts "
            "begin, such as [chat.eos_token_id]"
        )
    if not 0 < continuation.size <= max_length:
        raise ValueError(
            f"{name} has a continuation of {continuation.size} tokens; expected 1 to "
            f"{max_length}"
        )
    return context, continuation


def _batch(
    pairs: Sequence[tuple[np.ndarray, int]], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input_ids, attention_mask, labels), each i32[B, width], padded on the right.

    A label names the token behind its position.
    """
    ids = np.zeros((len(pairs), width), np.int32)
    mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
    for row, (whole, n_scored) in enumerate(pairs):
        n = len(whole) - 1
        ids[row, :n], mask[row, :n] = whole[:-1], 1
        labels[row, n - n_scored : n] = whole[-n_scored:]
    return ids, mask, labels


@functools.partial(jax.jit, static_argnames=("graphdef", "chunk"))
def _scored(
    graphdef: Any,
    weights: Any,
    ids: jax.Array,
    mask: jax.Array,
    labels: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """(log p(label) f32[B, T], whether the label is likeliest bool[B, T]).

    Positions without a label have 0 and True.
    """
    model = nnx.merge(graphdef, weights)
    hidden = model.hidden(ids, mask)
    return _of_labels(hidden, model.head, labels, chunk)


def _of_labels(
    hidden: jax.Array,
    head: Callable[[jax.Array], jax.Array],
    labels: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """What `_scored` returns, with the logits of one chunk of positions at a time.

    Positions with a label are moved to the front, and chunks without any are skipped:
    the head is paid for continuations only.
    """
    flat = labels.reshape(-1)
    order = jnp.argsort(flat == IGNORED, stable=True)
    padding = -flat.shape[0] % chunk
    parts = jnp.pad(hidden.reshape(flat.shape[0], -1)[order], ((0, padding), (0, 0)))
    targets = jnp.pad(flat[order], (0, padding), constant_values=IGNORED)

    def score(part: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = head(part).astype(jnp.float32)
        counts = target != IGNORED
        index = jnp.where(counts, target, 0)
        chosen = jnp.take_along_axis(logits, index[:, None], axis=-1)[:, 0]
        log_p = chosen - jax.nn.logsumexp(logits, axis=-1)
        likeliest = jnp.argmax(logits, axis=-1) == index
        return jnp.where(counts, log_p, 0.0), likeliest | ~counts

    def skip(part: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(target.shape, jnp.float32), jnp.ones(target.shape, bool)

    def step(_, some):
        return None, jax.lax.cond(jnp.any(some[1] != IGNORED), score, skip, *some)

    chunked = (parts.reshape(-1, chunk, parts.shape[-1]), targets.reshape(-1, chunk))
    _, found = jax.lax.scan(step, None, chunked)
    log_p, likeliest = (values.reshape(-1)[: flat.shape[0]] for values in found)
    back = jnp.argsort(order)
    return log_p[back].reshape(labels.shape), likeliest[back].reshape(labels.shape)


def _check_known(sums: np.ndarray) -> None:
    """Raises FloatingPointError with the first request whose score is no number."""
    wrong = np.flatnonzero(np.isnan(sums))
    if len(wrong):
        raise FloatingPointError(
            f"the log-likelihood of request {wrong[0]} is NaN, and so are "
            f"{len(wrong) - 1} others of {len(sums)}: the model's weights are not "
            "finite"
        )
