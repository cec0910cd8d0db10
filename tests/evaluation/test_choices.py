"""Multiple choice by likelihood and by generation: measures, means and invariants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import LLAMA, VOCABULARY
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as words

from fedjax_fm.evaluation import (
    Question,
    by_generation,
    by_likelihood,
    choice_summary,
    few_shot,
    generate_until,
    lettered,
    loglikelihood,
    score_answers,
    score_options,
)
from fedjax_fm.evaluation.choices import encode_pair, read_option

ALPHABET = [chr(i) for i in range(32, 32 + VOCABULARY - 2)] + ["\n", "a"]


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-like tokenizer: a character a token."""
    found = Tokenizer(words.WordLevel({c: i for i, c in enumerate(ALPHABET)}, "a"))
    found.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    found.decoder = decoders.Fuse()
    return found


def questions(n=12, seed=0, n_options=4):
    rng = np.random.default_rng(seed)

    def text(length):
        return "".join(chr(i) for i in rng.integers(65, 80, length))

    return [
        Question(
            prompt=text(4),
            options=tuple(text(int(rng.integers(1, 5))) for _ in range(n_options)),
            answer=int(rng.integers(n_options)),
            category="xyz"[int(rng.integers(3))],
        )
        for _ in range(n)
    ]


def uniform_sums(asked, rng):
    return rng.normal(size=sum(len(q.options) for q in asked))


def ones(asked):
    return np.ones(sum(len(q.options) for q in asked), int)


def test_the_four_measures_by_hand():
    q = Question(prompt="?", options=("aa", "éééé", "b", "cccccc"), answer=0)
    sums, tokens = np.array([-3.0, -4.4, -2.0, -5.0]), np.array([1, 4, 1, 10])
    chosen = {"acc": 2, "acc_norm": 3, "acc_bytes": 1, "acc_tokens": 3}
    for answer in range(4):
        found = score_options(sums, tokens, [q._replace(answer=answer)])
        assert {name: int(v[0]) for name, v in found.items()} == {
            name: int(option == answer) for name, option in chosen.items()
        }


def test_equals_the_harness_on_its_own_arithmetic():
    asked, rng = questions(40), np.random.default_rng(0)
    sums = -np.abs(uniform_sums(asked, rng)) * 5
    found = score_options(sums, ones(asked), asked)
    place = 0
    for row, q in enumerate(asked):  # lines of lm_eval.api.task, `multiple_choice`
        lls = sums[place : place + len(q.options)]
        place += len(q.options)
        completion_len = np.array([float(len(i)) for i in q.options])
        byte_length = np.array([float(len(i.encode("utf-8"))) for i in q.options])
        assert found["acc"][row] == (np.argmax(lls) == q.answer)
        assert found["acc_norm"][row] == (np.argmax(lls / completion_len) == q.answer)
        assert found["acc_bytes"][row] == (np.argmax(lls / byte_length) == q.answer)


@pytest.mark.parametrize("n_options", [2, 4])
def test_guessing_uniformly_is_one_in_so_many(n_options):
    rng = np.random.default_rng(0)
    one = Question(prompt="?", options=tuple("ABCD"[:n_options]), answer=1)
    asked = [one] * 4000
    found = score_options(uniform_sums(asked, rng), ones(asked), asked)["acc"].mean()
    spread = np.sqrt((1 - 1 / n_options) / n_options / 4000)
    assert abs(found - 1 / n_options) < 4 * spread


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_a_constant_on_all_log_probabilities_changes_nothing(seed, constant):
    asked = questions(10, seed)
    sums = uniform_sums(asked, np.random.default_rng(seed))
    one, other = (
        score_options(values, ones(asked), asked)["acc"]
        for values in (sums, sums + constant)
    )
    np.testing.assert_array_equal(one, other)


def test_letters_have_one_character_so_acc_is_acc_norm(tokenizer):
    asked = [lettered(q) for q in questions(6)]
    asked = [q._replace(prompt=q.prompt[-12:]) for q in asked]
    found = by_likelihood(LLAMA, asked, tokenizer)
    for name in ("acc_norm", "acc_bytes", "acc_tokens"):
        np.testing.assert_array_equal(found["acc"], found[name])


def test_an_option_blind_model_keeps_its_accuracy_when_options_are_permuted():
    rng = np.random.default_rng(1)
    asked = questions(3000, n_options=4)
    blind = np.tile(np.array([-1.0, -2.0, -0.5, -3.0]), len(asked))
    before = score_options(blind, ones(asked), asked)["acc"]
    permuted = []
    for q in asked:
        order = rng.permutation(4)
        permuted.append(
            q._replace(
                options=tuple(q.options[i] for i in order),
                answer=int(np.flatnonzero(order == q.answer)[0]),
            )
        )
    after = score_options(blind, ones(asked), permuted)["acc"]
    assert abs(before.mean() - after.mean()) < 4 * np.sqrt(2 * 0.25 * 0.75 / 3000)


def test_neither_batch_nor_order_changes_a_question(tokenizer):
    asked = questions(9)
    whole = by_likelihood(LLAMA, asked, tokenizer, batch_size=3)
    for name, values in by_likelihood(LLAMA, asked[::-1], tokenizer).items():
        np.testing.assert_array_equal(values[::-1], whole[name])
    alone = [by_likelihood(LLAMA, [q], tokenizer)["acc"][0] for q in asked]
    np.testing.assert_array_equal(alone, whole["acc"])


def test_likelihoods_are_those_of_the_options_behind_the_prompt(tokenizer):
    (q,) = questions(1)
    requests = [
        (tokenizer.encode(q.prompt).ids, tokenizer.encode(" " + option).ids)
        for option in q.options
    ]
    best = int(np.argmax(loglikelihood(LLAMA, requests).sums))
    found = by_likelihood(LLAMA, [q._replace(answer=best)], tokenizer)
    assert found["acc"] == [1]


def test_written_answers_are_read_without_case_and_punctuation():
    options = ("A", "B", "C", "D")
    for text in ("B", " b", "(B)", "b.", "B\nBecause", "**B**"):
        assert read_option(text, options) == 1
    for text in ("", "The answer is B", "AB", "E", "B because"):
        assert read_option(text, options) is None
    with pytest.raises(ValueError, match="read alike"):
        read_option("a", ("a.", "A"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["A", "b.", "C", "I do not know", ""]), min_size=1))
def test_generated_is_at_most_what_can_be_read(answers):
    asked = [Question(prompt="?", options=("A", "B", "C"), answer=0)] * len(answers)
    found = choice_summary(score_answers(answers, asked), asked)
    assert found["generated"] <= 1 - found["unparsable"] + 1e-12
    if found["unparsable"] < 1:
        share = found["generated"] / (1 - found["unparsable"])
        assert found["generated_of_parsable"] == pytest.approx(share)
    else:
        assert np.isnan(found["generated_of_parsable"])
    assert "parsable" not in found


def test_micro_and_macro_means():
    one = Question(prompt="?", options=("A", "B"), answer=0)
    asked = [one._replace(category=c) for c in "aaab"]
    found = choice_summary({"acc": np.array([1.0, 0, 0, 1])}, asked)
    assert found == {"acc": 0.5, "acc_macro": pytest.approx((1 / 3 + 1) / 2)}
    same = choice_summary({"acc": np.array([1.0, 0, 0, 1])}, [one] * 4)
    assert same["acc"] == same["acc_macro"]


def test_by_generation_reads_what_the_model_writes(tokenizer):
    asked = questions(4)
    prompts = [tokenizer.encode(q.prompt).ids for q in asked]
    written = generate_until(LLAMA, prompts, tokenizer, until="\n", max_gen_toks=3)
    readable = [
        q._replace(options=(text, "nothing like it"), answer=0)
        for q, text in zip(asked, written, strict=True)
    ]
    kept = [
        q
        for q in readable
        if q.options[0] and read_option(q.options[0], q.options) == 0
    ]
    assert kept
    found = by_generation(LLAMA, kept, tokenizer, max_gen_toks=3)
    assert found["generated"].all()
    other = [q._replace(options=("no", "never")) for q in kept]
    found = by_generation(LLAMA, other, tokenizer, max_gen_toks=3)
    assert not found["parsable"].any()


def test_the_form_of_mmlu():
    q = Question(
        prompt="What is it?", options=("w", "x", "y", "z"), answer=2, category="c"
    )
    form = lettered(q)
    assert form.prompt == "What is it?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert (form.options, form.answer, form.category) == (tuple("ABCD"), 2, "c")
    shot = few_shot(form, [form, form])
    assert shot.prompt == f"{form.prompt} C\n\n{form.prompt} C\n\n{form.prompt}"


def test_pairs_are_cut_as_the_harness_cuts_them():
    api = pytest.importorskip("lm_eval.api.model")
    # Joins letters in pairs, so that a cut inside of a pair matters.
    found = Tokenizer(
        words.BPE({"a": 0, "b": 1, " ": 2, " a": 3, "ab": 4}, [(" ", "a"), ("a", "b")])
    )

    class Harness(api.TemplateLM):
        eot_token_id = 0
        loglikelihood_rolling = generate_until = _loglikelihood_tokens = None

        def tok_encode(self, string, add_special_tokens=None, **kwargs):
            return found.encode(string).ids

    theirs = Harness()
    for context in ("a", "a ", "ab  ", "b"):
        for continuation in ("a", " a", "ab", " b", "b"):
            ours = encode_pair(theirs.tok_encode, context, continuation)
            assert ours == theirs._encode_pair(context, continuation)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": ("A",)}, "question 0 needs at least two options"),
        ({"options": "AB"}, "question 0 needs at least two options"),
        ({"options": ("A", "")}, "option 1 of question 0 is empty"),
        ({"answer": 2}, "question 0 has answer=2; expected 0 to 1"),
    ],
)
def test_refusals(change, said):
    q = Question(prompt="?", options=("A", "B"), answer=0)
    with pytest.raises(ValueError, match=said):
        score_answers(["A"], [q._replace(**change)])


def test_more_refusals():
    q = Question(prompt="?", options=("A", "B"), answer=0)
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        score_answers(["A"], [q, q])
    with pytest.raises(ValueError, match="each of 2 options, got 3 and 2"):
        score_options(np.zeros(3), np.ones(2), [q])
    with pytest.raises(ValueError, match="no questions"):
        choice_summary({}, [])
    with pytest.raises(ValueError, match="acc: 2 of 1 questions"):
        choice_summary({"acc": np.ones(2)}, [q])
    with pytest.raises(ValueError, match="expected a context with text"):
        encode_pair(list, " ", "b")
