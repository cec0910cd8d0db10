"""Beam search: token for token against transformers, and against all answers of a small
vocabulary.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models as reference

from fedjax_fm import models
from fedjax_fm.models.beam import beam_search

N, BEAMS = 9, 4


@pytest.mark.parametrize(
    ("name", "eos", "length_penalty", "early_stopping"),
    [
        ("llama-3", None, 1.0, False),
        ("llama-3", [8, 34, 27], 1.0, False),
        ("llama-3", [37], 0.0, "never"),
        ("gpt2", [18, 81, 53], 2.0, True),
        ("gpt2", [25], -0.5, False),
        ("t5-v1.1", [6, 91], 0.5, "never"),
    ],
)
def test_beams_equal_those_of_transformers(name, eos, length_penalty, early_stopping):
    torch = pytest.importorskip("torch")
    theirs, folder = reference.folder_of(name)
    ours, is_t5 = models.from_pretrained(folder), name.startswith("t5")
    inputs = reference.text(left=not is_t5)
    options = {
        "num_beams": BEAMS,
        "max_new_tokens": N,
        "length_penalty": length_penalty,
    }
    options |= {
        "early_stopping": early_stopping,
        "eos_token_id": eos,
        "pad_token_id": 3,
    }

    def search(ids, mask):
        start = (
            ours.start(ids, mask, N)
            if is_t5
            else (ids, mask, ours.empty_cache(3, ids.shape[1] + N))
        )
        return beam_search(ours.next_logits, *start, **options)

    found = reference.quick_jit(search)(*inputs.values())
    with torch.no_grad():
        expected = theirs.generate(
            **{name: torch.tensor(array).long() for name, array in inputs.items()},
            **options,
            do_sample=False,
            num_return_sequences=BEAMS,
            return_dict_in_generate=True,
            output_scores=True,
            use_cache=not is_t5,
        )
    skipped = 1 if is_t5 else inputs["input_ids"].shape[1]
    answers = expected.sequences.numpy()[:, skipped:].reshape(3, BEAMS, -1)
    np.testing.assert_allclose(
        found.scores, expected.sequences_scores.numpy().reshape(3, BEAMS), rtol=1e-4
    )
    np.testing.assert_array_equal(
        np.asarray(found.tokens)[..., : answers.shape[-1]], answers
    )
    lengths = np.asarray(found.lengths)
    assert (np.asarray(found.tokens)[..., answers.shape[-1] :] == 3).all()
    assert len(np.unique(answers)) > 5
    assert (lengths == N).all() if eos is None else len(np.unique(lengths)) > 1


VOCABULARY, END, STEPS = 4, 2, 4


def weigh(history: jax.Array, table: jax.Array) -> jax.Array:
    """Logits f32[..., V] that depend on all tokens so far and their order."""
    return table[(history * jnp.arange(1, history.shape[-1] + 1)).sum(-1) % len(table)]


def exhaustive(
    prompt: list[int], table: np.ndarray, length_penalty: float
) -> list[tuple[float, tuple]]:
    """(score, answer) of every answer, the best first."""
    answers = []
    for answer in itertools.product(range(VOCABULARY), repeat=STEPS):
        if END in answer:
            answer = answer[: answer.index(END) + 1]
        answers.append(answer)
    scored = []
    for answer in set(answers):
        log_p = 0.0
        for i, token in enumerate(answer):
            history = [*prompt, *answer[:i]]
            logits = table[
                sum((place + 1) * t for place, t in enumerate(history)) % len(table)
            ]
            log_p += logits[token] - math.log(np.exp(logits).sum())
        scored.append((log_p / len(answer) ** length_penalty, answer))
    return sorted(scored, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beams_wide_enough_find_the_best_of_all_answers(length_penalty):
    """The model reads its history from the cache, so that a beam with another's cache
    would show.
    """
    table = np.random.default_rng(1).normal(size=(7, VOCABULARY)).astype(np.float32)
    prompts = np.array([[1, 3], [0, 2]], np.int32)
    width, wide = prompts.shape[1] + STEPS, VOCABULARY**STEPS // 4

    def next_logits(ids, mask, cache):
        keys = jax.lax.dynamic_update_slice(
            cache.keys, ids[None, :, :, None, None], (0, 0, cache.length, 0, 0)
        )
        cache = cache._replace(keys=keys, length=cache.length + ids.shape[1])
        return weigh(keys[0, :, :, 0, 0], jnp.asarray(table)), cache

    slots = jnp.zeros((1, 2, width, 1, 1), jnp.int32)
    cache = models.KVCache(
        keys=slots, values=slots, valid=jnp.zeros((2, width), bool), length=jnp.int32(0)
    )
    options = {
        "max_new_tokens": STEPS,
        "eos_token_id": END,
        "length_penalty": length_penalty,
    }

    def search(k):
        return jax.jit(
            lambda ids: beam_search(
                next_logits,
                ids,
                np.ones_like(prompts),
                cache,
                num_beams=k,
                early_stopping="never",
                **options,
            )
        )(prompts)

    found = search(wide)
    for row, prompt in enumerate(prompts.tolist()):
        expected = exhaustive(prompt, table, length_penalty)[:5]
        for rank, (score, answer) in enumerate(expected):
            length = int(found.lengths[row, rank])
            assert (
                tuple(np.asarray(found.tokens[row, rank, :length]).tolist()) == answer
            )
            np.testing.assert_allclose(found.scores[row, rank], score, rtol=1e-5)
    assert (
        np.asarray(search(2).scores[:, 0]) <= np.asarray(found.scores[:, 0]) + 1e-6
    ).all()


def test_arguments_out_of_range():
    ids = np.ones((1, 2), np.int32)
    slots = jnp.zeros((1, 1, 4, 1, 1))
    cache = models.KVCache(
        keys=slots, values=slots, valid=jnp.zeros((1, 4), bool), length=jnp.int32(0)
    )

    def logits(ids, mask, cache):
        return (jnp.zeros((ids.shape[0], 3)), cache)

    for options, message in (
        ({"num_beams": 0}, "num_beams >= 1, got num_beams=0"),
        (
            {"num_beams": 2, "early_stopping": "always"},
            "True, False, 'never', got early_stopping='always'",
        ),
        ({"num_beams": 2, "max_new_tokens": 3}, "need 5 cache slots, got 4"),
        (
            {"num_beams": 2, "eos_token_id": [0, 1, 2]},
            "8 candidates need a vocabulary of more than 3 tokens",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            beam_search(logits, ids, ids, cache, **{"max_new_tokens": 2, **options})
