"""Generation up to stop strings, against plain generation that is cut afterwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_decoders import CONTEXT, LLAMA, MODELS, VOCABULARY
from tokenizers import Tokenizer, decoders
from tokenizers import models as words

from fedjax_fm import models, peft
from fedjax_fm.evaluation import generate_until, generation
from fedjax_fm.evaluation.generation import cut

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWX"


@pytest.fixture(scope="module")
def tokenizer():
    """A letter a token, so that texts show tokens."""
    found = Tokenizer(words.WordLevel({letter: i for i, letter in enumerate(LETTERS)}))
    found.decoder = decoders.Fuse()
    return found


def prompts(n=7, seed=0, longest=10):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, VOCABULARY, rng.integers(1, longest + 1)).tolist()
        for _ in range(n)
    ]


@functools.partial(jax.jit, static_argnums=(0, 3))
def greedy(graphdef, state, prompt, n):
    model = nnx.merge(graphdef, state)
    return models.generate(model, prompt, max_new_tokens=n).tokens[0]


def plainly(model, prompt, n):
    """Each prompt by itself, n tokens."""
    room = max(len(prompt), min(10, CONTEXT - n - 3))
    padded = models.pad_prompts([prompt], 0, room)
    tokens = greedy(*nnx.split(model), padded, n)
    return "".join(LETTERS[token] for token in tokens.tolist())


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("segment", [1, 4, 32])
def test_equals_plain_generation_of_each_prompt(name, segment, tokenizer):
    asked = prompts()
    found = generate_until(
        MODELS[name], asked, tokenizer, max_gen_toks=9, segment=segment, batch_size=3
    )
    assert found == [plainly(MODELS[name], prompt, 9) for prompt in asked]


def test_it_ends_at_the_first_stop_string_and_leaves_it_out(tokenizer):
    asked = prompts(4)
    whole = [plainly(LLAMA, prompt, 12) for prompt in asked]
    stops = [whole[0][3:5], whole[1][6]]
    how = {"until": stops, "max_gen_toks": 12}
    for segment in (2, 5, 12):
        found = generate_until(LLAMA, asked, tokenizer, segment=segment, **how)
        assert found == [cut(text, stops) for text in whole]
    assert len(found[0]) <= 3


def test_a_batch_ends_when_every_row_has(tokenizer, monkeypatch):
    prompt = prompts(1)[0]
    stop = plainly(LLAMA, prompt, 12)[1]
    read = []
    advance = generation._go_on
    monkeypatch.setattr(
        generation, "_go_on", lambda *a, **k: read.append(1) or advance(*a, **k)
    )
    how = {"max_gen_toks": 12, "segment": 3}
    generate_until(LLAMA, [prompt] * 2, tokenizer, until=stop, **how)
    assert not read
    generate_until(LLAMA, [prompt] * 2, tokenizer, **how)
    assert len(read) == 3


def test_an_end_token_ends_an_answer(tokenizer):
    prompt = prompts(1)[0]
    whole = plainly(LLAMA, prompt, 12)
    end = LETTERS.index(whole[4])
    expected = whole[: whole.index(whole[4])]
    for segment in (2, 12):
        found = generate_until(
            LLAMA,
            [prompt, *prompts(2, seed=3)],
            tokenizer,
            max_gen_toks=12,
            eos_token_id=[end, 49],
            segment=segment,
        )
        assert found[0] == expected


def test_a_long_prompt_is_cut_on_the_left(tokenizer):
    prompt = prompts(1, longest=1)[0] * 3 + list(range(30))
    found = generate_until(LLAMA, [prompt], tokenizer, max_gen_toks=4)
    assert found == [plainly(LLAMA, prompt[-(CONTEXT - 4) :], 4)]


def test_it_compiles_once_a_width(tokenizer):
    generation._begin.clear_cache()
    generation._go_on.clear_cache()
    for seed in range(3):
        generate_until(
            LLAMA, prompts(5, seed), tokenizer, max_gen_toks=8, segment=4, batch_size=2
        )
    assert generation._begin._cache_size() == 1
    assert generation._go_on._cache_size() == 1


def test_stop_strings_are_looked_for_in_order():
    assert cut("a\nQ: b", ["Q:", "\n"]) == "a"
    assert cut("abc", []) == "abc"
    assert cut("abcabc", ["c"]) == "ab"
    assert cut("xyz", ["xyz"]) == ""


def test_text_after_the_stop_string_cannot_matter(tokenizer):
    prompt = prompts(1)[0]
    stop = plainly(LLAMA, prompt, 12)[2]
    short, long = (
        generate_until(LLAMA, [prompt], tokenizer, until=stop, max_gen_toks=n)
        for n in (4, 12)
    )
    assert short == long


@pytest.mark.parametrize(
    ("asked", "how", "error", "said"),
    [
        ([[]], {}, ValueError, "prompt 0 is empty"),
        ([[1]], {"until": ["a", ""]}, ValueError, "empty stop string"),
        ([[1]], {"until": [3]}, TypeError, "stop string of until"),
        ([[1]], {"max_gen_toks": 24}, ValueError, "leaves no room for a prompt"),
        ([[1]], {"max_gen_toks": 0}, ValueError, "max_gen_toks=0"),
        ([[60]], {}, ValueError, "prompt 0 has the token id 60"),
    ],
)
def test_refusals(asked, how, error, said, tokenizer):
    with pytest.raises(error, match=said):
        generate_until(LLAMA, asked, tokenizer, **({"max_gen_toks": 4} | how))


def test_models_with_a_trained_prompt(tokenizer):
    model = peft.apply(LLAMA, peft.prompt_tuning(3)).model()
    asked = prompts(3)
    found = generate_until(model, asked, tokenizer, max_gen_toks=5, segment=2)
    assert found == [plainly(model, prompt, 5) for prompt in asked]


def test_what_is_drawn_depends_on_the_prompt_and_its_number_alone(tokenizer):
    asked = prompts(5)

    def drawn(**how):
        fixed = {"max_gen_toks": 9, "temperature": 1.3, "key": jax.random.key(3)}
        return generate_until(LLAMA, asked, tokenizer, **(fixed | how))

    first = drawn()
    for segment, batch_size in ((2, 3), (4, 1), (9, 5)):
        assert drawn(segment=segment, batch_size=batch_size) == first
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = fold(jax.random.key(3), jnp.arange(5))
    assert drawn(key=keys) == first
    # As one plain call of `generate`.
    one = models.generate(
        LLAMA, [asked[2]], max_new_tokens=9, temperature=1.3, key=keys[2:3]
    )
    assert tokenizer.decode(one.tokens[0].tolist()) == first[2]
    assert drawn(key=jax.random.key(4)) != first
    with pytest.raises(ValueError, match="one key or 5 keys"):
        drawn(key=keys[:2])
    with pytest.raises(ValueError, match="needs a key"):
        drawn(key=None)
