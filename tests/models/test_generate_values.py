"""What ends an answer, and what `generate`, `beam_search`, `pad_prompts` and `pack` refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_values import BAD
from flax import nnx

from fedjax_fm import models
from fedjax_fm.models.llama import LlamaConfig, LlamaForCausalLM

N = 8


def counting(vocabulary=10):
    """A model that writes last token + 1, and its empty cache for a batch of 2."""

    def next_logits(ids, mask, cache):
        return jax.nn.one_hot((ids[:, -1] + 1) % vocabulary, vocabulary), cache

    slots = jnp.zeros((1, 2, 3 + N, 1, 1))
    return next_logits, models.KVCache(
        keys=slots, values=slots, valid=jnp.zeros((2, 3 + N), bool), length=jnp.int32(0)
    )


PROMPTS = {
    "input_ids": np.array([[0, 0, 1], [0, 0, 4]]),
    "attention_mask": np.ones((2, 3), np.int32),
}


@pytest.mark.parametrize(
    "ends", [[3, 7], (3, 7), np.array([3, 7]), jnp.array([7, 3]), {3: 0, 7: 0}.keys()]
)
def test_a_row_ends_at_any_of_several_ends(ends):
    model, cache = counting()
    found = models.generate(
        model,
        **PROMPTS,
        cache=cache,
        max_new_tokens=N,
        eos_token_id=ends,
        pad_token_id=9,
    )
    assert found.lengths.tolist() == [2, 3]
    assert found.tokens[0, :3].tolist() == [2, 3, 9]
    assert found.tokens[1, :4].tolist() == [5, 6, 7, 9]


@pytest.mark.parametrize("none", [None, [], ()])
def test_no_end_at_all(none):
    model, cache = counting()
    found = models.generate(
        model, **PROMPTS, cache=cache, max_new_tokens=N, eos_token_id=none
    )
    assert found.lengths.tolist() == [N, N]


BAD_ENDS = [
    "</s>",
    b"x",
    True,
    -1,
    1.5,
    float("nan"),
    [2, None],
    [[2]],
    ["2"],
    {"eos": 2},
    np.array([2.5]),
]
KINDS = {
    "max_new_tokens": "whole",
    "temperature": "real",
    "top_k": "whole?",
    "top_p": "real?",
    "pad_token_id": "whole",
}
CASES = [
    (n, v)
    for n, kind in KINDS.items()
    for v in BAD[kind.rstrip("?")]
    if not (v is None and "?" in kind)
]


@pytest.mark.parametrize("bad", BAD_ENDS)
def test_ends_that_no_token_can_be(bad):
    model, cache = counting()
    with pytest.raises((TypeError, ValueError), match="eos_token_id="):
        models.generate(
            model, **PROMPTS, cache=cache, max_new_tokens=2, eos_token_id=bad
        )
    with pytest.raises((TypeError, ValueError), match="eos_token_id="):
        models.beam_search(
            model,
            **PROMPTS,
            cache=cache,
            max_new_tokens=2,
            num_beams=1,
            eos_token_id=bad,
        )


@pytest.mark.parametrize(("name", "value"), CASES)
def test_bad_values_of_generate(name, value):
    model, cache = counting()
    good = {"max_new_tokens": 2, "temperature": 1.0, "key": jax.random.key(0)}
    with pytest.raises((TypeError, ValueError)) as raised:
        models.generate(model, **PROMPTS, cache=cache, **{**good, name: value})
    assert f"{name}={value!r}" in str(raised.value) or f"{name}={value}" in str(
        raised.value
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_beams", value) for value in BAD["whole"]),
        *(("length_penalty", value) for value in BAD["real"]),
        *(("early_stopping", value) for value in (1, 0, None, "true")),
        *(("pad_token_id", value) for value in BAD["whole"]),
    ],
)
def test_bad_values_of_beam_search(name, value):
    model, cache = counting()
    with pytest.raises((TypeError, ValueError)) as raised:
        models.beam_search(
            model,
            **PROMPTS,
            cache=cache,
            **{"max_new_tokens": 2, "num_beams": 2, name: value},
        )
    assert f"{name}={value!r}" in str(raised.value) or f"{name}={value}" in str(
        raised.value
    )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([1, 2], r"prompt 0 .*write \[ids\]"),
        ([[1], [2, 2.5]], "prompt 1"),
        ([[1], "ab"], "prompt 1"),
        ([[1], [True, False]], "prompt 1"),
        ([[1], [None]], "prompt 1"),
        ([[1], [[2]]], "prompt 1"),
        ([[1], [-1]], "prompt 1 has the token id -1"),
        ([[1], [2**32 + 1]], "prompt 1 has the token id 4294967297"),
    ],
)
def test_prompts_that_are_no_ids(rows, words):
    with pytest.raises((TypeError, ValueError), match=words):
        models.pad_prompts(rows, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("pad_token_id", None), ("pad_token_id", -1), ("length", 2.5), ("length", True)],
)
def test_bad_values_of_pad_prompts(name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name}={value}"):
        models.pad_prompts([[1, 2]], **{"pad_token_id": 0, name: value})


def packable(**others):
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).astype(int),
        "labels": ids,
        **others,
    }


def test_pack_loses_no_array():
    assert set(models.pack(packable(), 3)) == {"input_ids", "attention_mask", "labels"}
    with pytest.raises(ValueError, match=r"'client'.*others have no packed form"):
        models.pack(packable(client=np.array([0, 1])), 3)
    with pytest.raises(ValueError, match="packing needs the arrays"):
        models.pack(
            {"input_ids": np.ones((1, 2)), "attention_mask": np.ones((1, 2))}, 3
        )
    with pytest.raises(ValueError, match="of one shape"):
        models.pack(packable(labels=np.zeros((2, 2), int)), 3)


@pytest.mark.parametrize("value", BAD["whole"])
def test_pack_lengths(value):
    with pytest.raises((TypeError, ValueError), match=r"length="):
        models.pack(packable(), value)


def test_a_model_and_prompts_are_enough():
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    llama = LlamaForCausalLM(config, nnx.Rngs(0))
    rows = [[3, 4, 5], [7]]
    padded = models.pad_prompts(rows, 0)
    cache = llama.empty_cache(2, 3 + 4)
    expected = models.generate(
        llama.next_logits, **padded, cache=cache, max_new_tokens=4
    )
    for prompts in (rows, padded):
        found = models.generate(llama, prompts, max_new_tokens=4)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
    with pytest.raises(
        TypeError, match="expected a language model, or a cache beside a function"
    ):
        models.generate(llama.next_logits, rows, max_new_tokens=4)
