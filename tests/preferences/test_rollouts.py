"""Answers, their log-probabilities and rewards against slow plain implementations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from preference_problem import (
    END,
    PAD,
    adapted_llama,
    merged,
    moved,
    plain_log_probs,
    prompts,
)
from tiny_decoders import CONTEXT, MODELS

from fedjax_fm import models, preferences
from fedjax_fm.datasets import make_reasoning
from fedjax_fm.datasets.reasoning import check

ADAPTED = adapted_llama()
MODEL = merged(ADAPTED, moved(ADAPTED.delta))
PROMPTS = prompts(4)
N_PROMPT = PROMPTS["input_ids"].shape[1]
HOW = preferences.writing(6, temperature=0.8, eos_token_id=(END, 11), pad_token_id=PAD)
KEY = jax.random.key(4)


@functools.cache
def rollouts(greedy=False, which="llama"):
    model = MODEL if which == "llama" else MODELS[which]
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, ids, mask):
        model = nnx.merge(graphdef, state)
        key = None if greedy else KEY
        return preferences.roll_out(model, ids, mask, HOW, key)

    found = run(state, PROMPTS["input_ids"], PROMPTS["attention_mask"])
    return jax.tree.map(np.asarray, found)


def parts(found, row):
    """(ids of prompt and answer without padding, tokens of the prompt)."""
    real = found.input_ids[row][found.attention_mask[row] == 1].tolist()
    n_prompt = int(PROMPTS["attention_mask"][row].sum())
    return real, n_prompt


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("which", ["llama", "gpt2"])
def test_log_probabilities_are_those_of_the_uncached_model(greedy, which):
    found = rollouts(greedy, which)
    model = MODEL if which == "llama" else MODELS[which]
    for row in range(4):
        ids, n_prompt = parts(found, row)
        expected = plain_log_probs(model, ids, n_prompt, HOW.temperature)
        length = int(found.lengths[row])
        assert len(expected) == length
        np.testing.assert_allclose(
            found.log_probs[row, :length], expected, rtol=1e-4, atol=1e-4
        )
        assert not found.log_probs[row, length:].any()


def test_greedy_answers_are_a_plain_loops():
    found = rollouts(greedy=True)
    for row in range(4):
        ids = PROMPTS["input_ids"][row][PROMPTS["attention_mask"][row] == 1].tolist()
        answer = []
        while len(answer) < 6:
            scores = [
                plain_log_probs(MODEL, [*ids, *answer, token], len(ids) + len(answer))
                for token in range(50)
            ]
            answer.append(int(np.argmax([one[0] for one in scores])))
            if answer[-1] in HOW.ends:
                break
        length = int(found.lengths[row])
        assert found.tokens[row, :length].tolist() == answer


def test_greedy_answers_are_those_of_generate():
    found = rollouts(greedy=True)
    graphdef, state = nnx.split(MODEL)

    @jax.jit
    def run(state, ids, mask):
        model = nnx.merge(graphdef, state)
        return models.generate(
            model,
            ids,
            mask,
            max_new_tokens=6,
            eos_token_id=(END, 11),
            pad_token_id=PAD,
        )

    expected = run(state, PROMPTS["input_ids"], PROMPTS["attention_mask"])
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)


@pytest.mark.slow
def test_drawn_answers_follow_the_distribution():
    """First tokens of 4,000 equal prompts against the softmax that was computed apart."""
    n = 4000
    ids = np.repeat(PROMPTS["input_ids"][:1], n, axis=0)
    mask = np.repeat(PROMPTS["attention_mask"][:1], n, axis=0)
    how = HOW._replace(max_new_tokens=1)
    found = preferences.roll_out(MODEL, jnp.asarray(ids), jnp.asarray(mask), how, KEY)
    prompt = ids[0][mask[0] == 1].tolist()
    expected = [
        np.exp(plain_log_probs(MODEL, [*prompt, token], len(prompt), 0.8)[0])
        for token in range(50)
    ]
    counts = np.bincount(np.asarray(found.tokens)[:, 0], minlength=50)
    spread = np.sqrt(n * np.array(expected) * (1 - np.array(expected))) + 1
    assert (np.abs(counts - n * np.array(expected)) < 4.5 * spread).all()


def test_masks_end_with_the_end():
    found = rollouts()
    for row in range(4):
        length = int(found.lengths[row])
        assert found.mask[row].tolist() == [i < length for i in range(6)]
        inside = found.tokens[row, : length - 1]
        assert not np.isin(inside, HOW.ends).any()
        assert length == 6 or found.tokens[row, length - 1] in HOW.ends
        assert (found.tokens[row, length:] == PAD).all()
        labels = found.labels[row, N_PROMPT:]
        assert labels[:length].tolist() == found.tokens[row, :length].tolist()
    assert (found.lengths < 6).any()  # else the ends were not tried
    assert (found.labels[:, :N_PROMPT] == -100).all()


def test_clients_side_by_side_write_what_each_writes_alone():
    graphdef, state = nnx.split(MODEL)
    keys = jax.random.split(KEY, 3)

    def run(key, scale):
        model = nnx.merge(graphdef, jax.tree.map(lambda x: x * scale, state))
        ids, mask = PROMPTS["input_ids"], PROMPTS["attention_mask"]
        return preferences.roll_out(model, ids, mask, HOW, key)

    scales = jnp.array([1.0, 0.9, 1.1])
    together = jax.jit(jax.vmap(run))(keys, scales)
    single = jax.jit(run)
    for client in range(3):
        alone = single(keys[client], scales[client])
        np.testing.assert_array_equal(together.tokens[client], alone.tokens)
        np.testing.assert_allclose(
            together.log_probs[client], alone.log_probs, atol=1e-4
        )


def test_the_oracle_of_transformers(tmp_path):
    """A model of theirs, saved and read: log-probabilities of sampled answers agree."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    model = models.from_pretrained(tmp_path)
    ids, mask = PROMPTS["input_ids"], PROMPTS["attention_mask"]
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state):
        return preferences.roll_out(nnx.merge(graphdef, state), ids, mask, HOW, KEY)

    found = run(state)
    for row in range(4):
        real, n_prompt = parts(found, row)
        with torch.no_grad():
            logits = theirs(torch.tensor([real])).logits[0].double() / 0.8
        log_probs = torch.log_softmax(logits, -1).numpy()
        expected = [log_probs[i - 1, real[i]] for i in range(n_prompt, len(real))]
        length = int(found.lengths[row])
        np.testing.assert_allclose(
            found.log_probs[row, :length], expected, rtol=1e-4, atol=1e-4
        )


def test_exact_answers():
    found = rollouts(greedy=True)
    expected = np.full((4, 8), -100, np.int32)
    for row in range(4):
        length = int(found.lengths[row])
        expected[row, :length] = found.tokens[row, :length]
    reward = preferences.exact_answer()
    given = {"answer_ids": jnp.asarray(expected)}
    assert reward((), given, found).tolist() == [1.0] * 4
    longer = expected.copy()
    longer[0, int(found.lengths[0])] = 5  # one more token was expected
    longer[1, 0] += 1
    given = {"answer_ids": jnp.asarray(longer)}
    assert reward((), given, found).tolist() == [0.0, 0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="answer_ids missing"):
        reward((), {}, found)


class Words:
    """A tokenizer whose tokens are words."""

    def decode(self, ids, skip_special_tokens):
        return " ".join("yes" if i % 2 else "no" for i in ids[:1])


def test_checkers_on_the_host_see_the_text_and_the_question():
    """Also inside of vmap, where one call has the answers of several clients."""
    table = make_reasoning(4, ["coin"])
    found = rollouts(greedy=True)
    questions = np.array([3, 0, 2, 1])

    def is_right(answer, row):
        task, expected = str(table["task"][row]), table["answer"][row]
        return float(check(task, answer, expected).is_right)

    reward = preferences.checked_answers(Words(), is_right)
    got = jax.jit(lambda q: reward((), {"question": q}, found))(questions)
    expected = [
        is_right("yes" if found.tokens[row, 0] % 2 else "no", questions[row])
        for row in range(4)
    ]
    assert got.tolist() == expected
    several = np.stack([questions, questions[::-1]])
    both = jax.vmap(lambda q: reward((), {"question": q}, found))(several)
    assert both.shape == (2, 4)
    assert both[0].tolist() == expected
    with pytest.raises(TypeError, match="got check=1"):
        preferences.checked_answers(Words(), 1)


def test_what_does_not_fit_is_named():
    how = preferences.writing(CONTEXT)
    with pytest.raises(ValueError, match="max_new_tokens=24 do not fit"):
        preferences.roll_out(
            MODEL, PROMPTS["input_ids"], PROMPTS["attention_mask"], how, KEY
        )
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="got Linear"):
        preferences.roll_out(linear, jnp.ones((1, 2), jnp.int32), None, how, KEY)
    with pytest.raises(ValueError, match="temperature"):
        preferences.writing(4, temperature=0.0)
    with pytest.raises(ValueError, match="max_new_tokens"):
        preferences.writing(0)
