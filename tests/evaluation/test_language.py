"""Log-likelihoods of texts against a loop over tokens, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_decoders import CONTEXT, LLAMA, MODELS, VOCABULARY

from fedjax_fm import models, peft
from fedjax_fm.evaluation import language, loglikelihood, loglikelihood_rolling
from fedjax_fm.evaluation.language import context_length, rolling_windows


def requests(n=13, seed=0, longest=CONTEXT - 1):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        whole = rng.integers(0, VOCABULARY, rng.integers(2, longest + 1)).tolist()
        place = int(rng.integers(1, len(whole)))
        found.append((whole[:place], whole[place:]))
    return found


LOGITS = jax.jit(
    lambda graphdef, state, ids: nnx.merge(graphdef, state)(ids), static_argnums=0
)


def by_a_loop(model, context, continuation):
    """(sum of log p, greedy) with one call of the model a token.

    What stands behind a token cannot change its logits, so that all calls have one shape.
    """
    total, greedy = 0.0, True
    parts = nnx.split(model)
    for place, token in enumerate(continuation):
        seen = [*context, *continuation[:place]]
        ids = jnp.array([seen + [0] * (context_length(model) - len(seen))])
        logits = np.asarray(LOGITS(*parts, ids)[0, len(seen) - 1], np.float64)
        total += logits[token] - np.log(np.exp(logits).sum())
        greedy &= int(np.argmax(logits)) == token
    return total, greedy


@pytest.mark.parametrize("name", sorted(MODELS))
def test_equals_a_double_loop(name):
    asked = requests(8)
    found = loglikelihood(MODELS[name], asked, batch_size=3)
    for number, (context, continuation) in enumerate(asked):
        total, greedy = by_a_loop(MODELS[name], context, continuation)
        np.testing.assert_allclose(found.sums[number], total, rtol=1e-5, atol=1e-4)
        assert found.greedy[number] == greedy
        assert found.tokens[number] == len(continuation)


@pytest.mark.parametrize("chunk", [1, 5, 128])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_neither_neighbours_nor_padding_nor_chunks_change_a_request(batch_size, chunk):
    asked = requests()
    expected = loglikelihood(LLAMA, asked, batch_size=2)
    order = np.random.default_rng(1).permutation(len(asked))
    shuffled = [asked[i] for i in order]
    found = loglikelihood(LLAMA, shuffled, batch_size=batch_size, chunk=chunk)
    np.testing.assert_allclose(found.sums, expected.sums[order], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.greedy, expected.greedy[order])


def test_what_greedy_decoding_writes_is_greedy_and_nothing_else():
    context = [3, 14, 15]
    written = models.generate(LLAMA, [context], max_new_tokens=6).tokens[0].tolist()
    other = [*written[:-1], (written[-1] + 1) % VOCABULARY]
    found = loglikelihood(LLAMA, [(context, written), (context, other)])
    assert found.greedy.tolist() == [True, False]
    assert found.sums[0] > found.sums[1]


def test_probabilities_of_all_next_tokens_sum_to_one():
    asked = [([7, 8, 9], [token]) for token in range(VOCABULARY)]
    found = loglikelihood(LLAMA, asked)
    assert np.exp(found.sums).sum() == pytest.approx(1, abs=1e-5)
    assert found.greedy.sum() == 1


def test_a_long_context_is_cut_on_the_left():
    rng = np.random.default_rng(2)
    context = rng.integers(0, VOCABULARY, 40).tolist()
    for continuation in ([1, 2, 3], context[:CONTEXT]):
        kept = (context + continuation)[-(CONTEXT + 1) :]
        short = (kept[: -len(continuation)], continuation)
        long, cut = loglikelihood(LLAMA, [(context, continuation), short]).sums
        np.testing.assert_allclose(long, cut, rtol=1e-6)
    ends = [([9, 9, *context], [1]), ([8, 8, *context], [1])]
    same = loglikelihood(LLAMA, ends).sums
    assert same[0] == pytest.approx(same[1], rel=1e-6)
    shorter = loglikelihood(LLAMA, [(context, [1]), (context[-8:], [1])], max_length=8)
    assert shorter.sums[0] == pytest.approx(shorter.sums[1], rel=1e-6)


def test_it_compiles_once_a_width_and_never_for_other_weights():
    adapted = peft.apply(LLAMA, peft.lora(2, targets=["q_proj"]))
    other = jax.tree.map(lambda x: x + 0.1, adapted.delta)
    asked = requests(20)
    language._scored.clear_cache()
    first = loglikelihood(adapted.model(), asked, batch_size=4)
    n_programs = language._scored._cache_size()
    assert n_programs <= 2  # of 16 and of 24 tokens
    second = loglikelihood(adapted.model(other), asked[:7], batch_size=4)
    assert language._scored._cache_size() == n_programs
    assert np.abs(first.sums[:7] - second.sums).max() > 1e-3
    np.testing.assert_allclose(
        first.sums, loglikelihood(LLAMA, asked).sums, rtol=1e-5
    )  # an adapter that has not been trained changes nothing


def test_the_windows_are_those_of_the_harness():
    # The example in the docstring of `LM.loglikelihood_rolling` of lm-eval.
    windows = rolling_windows(range(10), -1, 4)
    inputs = [[*context, *continuation[:-1]] for context, continuation in windows]
    assert inputs == [[-1, 0, 1, 2], [3, 4, 5, 6], [5, 6, 7, 8]]
    assert [continuation for _, continuation in windows] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


@pytest.mark.parametrize("n", [0, 1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 60])
def test_rolling_predicts_each_token_once(n):
    ids = np.random.default_rng(n).integers(0, VOCABULARY, n).tolist()
    windows = rolling_windows(ids, 0, CONTEXT)
    assert [token for _, part in windows for token in part] == ids
    assert all(len(a) + len(b) <= CONTEXT + 1 for a, b in windows)
    if len(windows) > 1:
        assert len(windows[-1][0]) + len(windows[-1][1]) == CONTEXT + 1
    found = loglikelihood_rolling(LLAMA, [ids, [5, 6], ids], prefix_token_id=0)
    by_window = sum(by_a_loop(LLAMA, a, b)[0] for a, b in windows)
    np.testing.assert_allclose(found[[0, 2]], by_window, rtol=1e-5, atol=1e-5)


def test_rolling_is_minus_n_times_log_perplexity():
    ids = np.random.default_rng(5).integers(0, VOCABULARY, CONTEXT - 1)
    whole = jnp.array([[0, *ids]])
    losses, counted = models.next_token_losses(LLAMA, whole)
    log_perplexity = float(losses.sum() / counted.sum())
    found = loglikelihood_rolling(LLAMA, [ids], prefix_token_id=0)
    assert found[0] == pytest.approx(-len(ids) * log_perplexity, rel=1e-5)


def test_a_trained_prompt_takes_its_part_of_the_context():
    adapted = peft.apply(LLAMA, peft.prompt_tuning(5))
    model = adapted.model()
    assert context_length(model) == CONTEXT - 5
    rng = np.random.default_rng(3)
    context = rng.integers(0, VOCABULARY, 40).tolist()
    found = loglikelihood(model, [(context, [1, 2])])
    cut = context[-(CONTEXT - 5 - 1) :]
    total, _ = by_a_loop(model, cut, [1, 2])
    assert found.sums[0] == pytest.approx(total, rel=1e-4)


def test_no_requests_are_no_scores():
    found = loglikelihood(LLAMA, [])
    assert [len(values) for values in found] == [0, 0, 0]
    assert loglikelihood_rolling(LLAMA, [], prefix_token_id=0).shape == (0,)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ([([], [1])], ValueError, "request 0 has an empty context"),
        ([([1], [2]), ([1], [])], ValueError, "request 1 has a continuation of 0"),
        ([([1], [2] * 25)], ValueError, "a continuation of 25 tokens; expected 1 to 24"),
        ([([1], [50])], ValueError, "the token id 50; the model knows 0 to 49"),
        ([([-1], [5])], ValueError, "context of request 0 has the token id -1"),
        ([([0.5], [5])], TypeError, "a list of token ids"),
        ([("a", [5])], TypeError, "a list of token ids"),
        ([[1, 2, 3]], TypeError, "a pair"),
    ],
)  # fmt: skip
def test_refusals(asked, error, said):
    with pytest.raises(error, match=said):
        loglikelihood(LLAMA, asked)


def test_other_models_and_lengths_are_refused():
    with pytest.raises(ValueError, match="max_length=25 exceeds the model's context"):
        loglikelihood(LLAMA, [([1], [2])], max_length=25)
    bert = models.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = nnx.eval_shape(lambda: models.BertModel(bert, nnx.Rngs(0)))
    with pytest.raises(TypeError, match="causal language model"):
        loglikelihood(model, [([1], [2])])


def test_weights_that_are_not_finite_are_an_error():
    graphdef, state = nnx.split(LLAMA)
    broken = nnx.merge(graphdef, jax.tree.map(lambda x: x * jnp.nan, state))
    with pytest.raises(FloatingPointError, match="request 0 is NaN"):
        loglikelihood(broken, [([1], [2])])
