"""Text that a language model writes until it meets a stop string.

Prompts are sorted by length and padded to powers of two, so that a model compiles once
a width. An answer is generated in segments of a few dozen tokens: between them its text
is searched for the stop strings, and a batch ends when every row has met one.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.evaluation.buckets import doubling_batches
from fedjax_fm.evaluation.encoder_decoder import is_encoder_decoder, side_length
from fedjax_fm.evaluation.language import Ids, checked_length, token_ids
from fedjax_fm.models.generate import Generated, end_ids, generate_further, pad_prompts


class _Draw(NamedTuple):
    """How a token is chosen; temperature 0: the likeliest."""

    temperature: float
    top_k: int | None
    top_p: float | None


def generate_until(
    model: Any,
    prompts: Sequence[Ids],
    tokenizer: Any,
    *,
    until: str | Sequence[str] = (),
    max_gen_toks: int = 256,
    eos_token_id: int | Sequence[int] | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    segment: int = 32,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
) -> list[str]:
    """Continues prompts up to the first stop string, greedily or by sampling.

    Args:
      model: a language model of `models`, such as `adapted.model(state.delta)`.
      prompts: n prompts, the token ids of each. A longer one than `max_length -
        max_gen_toks` tokens is cut on the left, as lm-eval's `hf` model does; one for
        an encoder-decoder may have `max_length`.
      tokenizer: of the model, of `tokenizers` or of transformers; makes text of ids,
        special tokens left out.
      until: stop strings, which are no part of the answer; see `cut`. One that is
        written as part of a special token is never met: name its id in `eos_token_id`.
      max_gen_toks: tokens of an answer, at most.
      eos_token_id: ends an answer, one id or several; None: no id does.
      batch_size: prompts that are computed at once.
      max_length: tokens of prompt and answer together, of an encoder-decoder of the
        prompt; None: the model's whole context, see `checked_length`, `side_length`.
      segment: tokens between two looks for stop strings. It changes the speed alone.
      temperature: 0 takes the likeliest token and needs no key.
      top_k: draws from the k likeliest tokens; None: from all.
      top_p: draws from the nucleus of that probability; None: from all.
      key: one for all prompts, folded with a prompt's number, so that what it draws
        depends neither on the batch nor on its neighbours; or one key a prompt [n].

    Returns:
      n answers, in the order of the prompts.

    Raises:
      TypeError, ValueError: an empty prompt, a stop string that is empty or no text, an
        answer that leaves no room for a prompt.

    Example:
      >>> from flax import nnx
      >>> from tokenizers import Tokenizer, models as words
      >>> from fedjax_fm import models
      >>> vocabulary = {f"w{i}": i for i in range(30)}
      >>> tokenizer = Tokenizer(words.WordLevel(vocabulary, "w0"))
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2
      ... )
      >>> model = models.GPT2LMHeadModel(config, nnx.Rngs(0))
      >>> answers = generate_until(model, [[5, 8]], tokenizer, max_gen_toks=3)
      >>> len(answers[0].split())
      3
    """
    checks.whole("max_gen_toks", max_gen_toks, least=1)
    checks.whole("segment", segment, least=1)
    stops = checked_stops(until)
    ends = tuple(int(i) for i in end_ids(eos_token_id))
    if is_encoder_decoder(model):
        room = side_length(max_length)
    else:
        max_length = checked_length(model, max_length)
        room = max_length - max_gen_toks
    if room < 1:
        raise ValueError(
            f"max_gen_toks={max_gen_toks} leaves no room for a prompt in "
            f"{max_length} tokens"
        )
    rows = [
        _cut_prompt(number, ids, model.config.vocab_size, room)
        for number, ids in enumerate(prompts)
    ]
    answers = [""] * len(rows)
    lengths = np.array([len(ids) for ids in rows], np.int64)
    parts = nnx.split(model)
    checks.real("temperature", temperature, least=0)
    draw = _Draw(temperature=float(temperature), top_k=top_k, top_p=top_p)
    keys = None if key is None else _row_keys(key, len(rows))
    for width, own, padded in doubling_batches(lengths, batch_size, room):
        batch = pad_prompts([rows[row] for row in padded], 0, width)
        own_keys = None if keys is None else keys[padded]
        how = {"ends": ends, "draw": draw, "keys": own_keys}
        segments = _segments(parts, batch, max_gen_toks, segment, how)
        found = _read(segments, len(own), tokenizer, stops=stops, ends=ends)
        for row, answer in zip(own, found, strict=True):
            answers[row] = answer
    return answers


def cut(text: str, until: Sequence[str]) -> str:
    r"""The text before its stop strings.

    They are looked for one after the other, each in what the one before has left, as
    lm-eval does.

    Args:
      text: that was generated.
      until: stop strings, none of them empty.

    Returns:
      The text up to the first stop string.

    Example:
      >>> cut("4 is it.\n\nQuestion: 5", ["Question:", "\n"])
      '4 is it.'
    """
    for stop in until:
        text = text.split(stop, 1)[0]
    return text


def checked_stops(until: Any) -> list[str]:
    """Stop strings as a list.

    Args:
      until: one or several.

    Raises:
      TypeError: one is no text.
      ValueError: one is empty, and would end every answer at once.
    """
    stops = [until] if isinstance(until, str) else list(until)
    for stop in stops:
        if not checks.text("a stop string of until", stop):
            raise ValueError("until has an empty stop string; leave it out")
    return stops


def _cut_prompt(number: int, ids: Ids, vocabulary: int, room: int) -> list[int]:
    """The last tokens of a prompt."""
    found = token_ids(f"prompt {number}", ids, vocabulary)
    if not found.size:
        raise ValueError(
            f"prompt {number} is empty: give the token with which the model's texts "
            "begin, such as [chat.eos_token_id]"
        )
    return found[-room:].tolist()


def _segments(
    parts: tuple[Any, Any],
    batch: dict[str, np.ndarray],
    max_gen_toks: int,
    segment: int,
    how: dict[str, Any],
) -> Iterator[Generated]:
    """Yields the answers of a batch in segments of `segment` tokens.

    Rows that have met their end go on with padding, which the reader drops.
    """
    graphdef, weights = parts
    n = min(segment, max_gen_toks)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    new, cache = _begin(graphdef, weights, ids, mask, most=max_gen_toks, n=n, **how)
    yield new
    for start in range(n, max_gen_toks, segment):
        n = min(segment, max_gen_toks - start)
        last, written = new.tokens[:, -1:], jnp.int32(start)
        new, cache = _go_on(graphdef, weights, last, cache, n=n, written=written, **how)
        yield new


@functools.partial(jax.jit, static_argnames=("graphdef", "most", "n", "ends", "draw"))
def _begin(
    graphdef: Any,
    weights: Any,
    ids: jax.Array,
    mask: jax.Array,
    *,
    most: int,
    n: int,
    ends: tuple[int, ...],
    draw: _Draw,
    keys: jax.Array | None,
) -> tuple[Generated, Any]:
    """The first n tokens, and a cache with room for `most`."""
    model = nnx.merge(graphdef, weights)
    if is_encoder_decoder(model):
        ids, mask, cache = model.start(ids, mask, most)
    else:
        cache = model.empty_cache(ids.shape[0], ids.shape[1] + most)
    more = draw._asdict()
    return generate_further(
        model, ids, mask, cache, max_new_tokens=n, eos_token_id=ends, key=keys, **more
    )


# The cache is given away: the next one takes its place in memory.
@functools.partial(
    jax.jit,
    static_argnames=("graphdef", "n", "ends", "draw"),
    donate_argnames=("cache",),
)
def _go_on(
    graphdef: Any,
    weights: Any,
    last: jax.Array,
    cache: Any,
    *,
    n: int,
    ends: tuple[int, ...],
    draw: _Draw,
    keys: jax.Array | None,
    written: jax.Array,
) -> tuple[Generated, Any]:
    """The next n tokens behind the last one."""
    model = nnx.merge(graphdef, weights)
    real, more = jnp.ones_like(last), draw._asdict()
    return generate_further(
        model,
        last,
        real,
        cache,
        max_new_tokens=n,
        eos_token_id=ends,
        key=keys,
        written=written,
        **more,
    )


def _row_keys(key: jax.Array, n: int) -> jax.Array:
    """One key a prompt, of one for all or as they are given."""
    if key.shape == ():
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))
    if key.shape != (n,):
        raise ValueError(
            f"expected one key or {n} keys, one a prompt, got keys of shape "
            f"{list(key.shape)}"
        )
    return key


def _read(
    segments: Iterator[Generated],
    n_rows: int,
    tokenizer: Any,
    *,
    stops: Sequence[str],
    ends: tuple[int, ...],
) -> list[str]:
    """The answers of the first n rows; stops reading when all have ended."""
    written: list[list[int]] = [[] for _ in range(n_rows)]
    answers, done = [""] * n_rows, [False] * n_rows
    for new in segments:
        tokens = np.asarray(new.tokens)
        for row in range(n_rows):
            if done[row]:
                continue
            fresh = tokens[row].tolist()
            end = next((i for i, token in enumerate(fresh) if token in ends), None)
            written[row] += fresh[:end]
            text = tokenizer.decode(written[row], skip_special_tokens=True)
            answers[row] = cut(text, stops)
            done[row] = end is not None or len(answers[row]) < len(text)
        if all(done):
            break
    return answers
