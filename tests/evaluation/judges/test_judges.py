"""What a judge may say of pairs, and what the numbers made of it are."""

import numpy as np
import pytest
from scipy import stats

from fedjax_fm.evaluation import judges, rouge_l
from fedjax_fm.evaluation.judges import Decision, Judge, Pair
from fedjax_fm.evaluation.judges.judge import swapped

RNG = np.random.default_rng(0)


def pair(a, b, reference="the cat sat on the mat"):
    return Pair(prompt="Where?", a=a, b=b, reference=reference)


PAIRS = [
    pair("the cat sat", "a dog"),
    pair("a dog", "the cat sat on it"),
    pair("the cat", "the cat"),
    pair("no", "yes"),
    pair("the cat sat on the mat", "the mat"),
]


def always(verdict, name="one"):
    return Judge(name, lambda pairs: [Decision(verdict)] * len(pairs))


def test_rouge_is_the_score_of_each_answer():
    found = judges.compare(judges.rouge_judge(), PAIRS)
    for one, outcome in zip(PAIRS, found.outcomes, strict=True):
        a, b = (rouge_l(text, one.reference) for text in (one.a, one.b))
        assert outcome == ("a" if a > b else "b" if b > a else "tie")
    assert found.outcomes == ("a", "b", "tie", "tie", "a")
    assert found.judge == "ROUGE-L to the reference"
    assert judges.rouge_judge(list).name == "ROUGE-L to the reference, tokens of list"


def test_the_same_answer_twice_is_a_tie():
    for judge in (judges.rouge_judge(), judges.exact_judge()):
        assert judges.compare(judge, [PAIRS[2]]).outcomes == ("tie",)


def test_a_judge_that_prefers_what_it_sees_first_finds_ties_alone():
    for verdict in ("a", "b"):
        found = judges.compare(always(verdict), PAIRS)
        assert found.outcomes == ("tie",) * 5
        assert found.first == (verdict == "a")
    assert judges.compare(judges.rouge_judge(), PAIRS).first == 0


def test_swapping_the_models_swaps_the_outcomes():
    judge = judges.rouge_judge()
    plain = judges.win_rate(judges.compare(judge, PAIRS))
    other = judges.win_rate(judges.compare(judge, [swapped(p) for p in PAIRS]))
    assert plain.rate == 1 - other.rate
    assert (plain.wins, plain.losses) == (other.losses, other.wins) == (2, 1)
    np.testing.assert_allclose(plain.controlled, 1 - other.controlled, atol=1e-4)
    assert (plain.length_a, plain.length_b) == (other.length_b, other.length_a)


def test_errors_and_waits_are_counted_apart():
    by_order = iter(("a", "b"))  # of the first order, then of the second

    def mixed(pairs):
        own = Decision(next(by_order))
        return [own, Decision("error", "no mark"), own, Decision("waiting", "off"), own]

    found = judges.compare(Judge("mixed", mixed), PAIRS)
    assert found.outcomes == ("a", "error", "a", "waiting", "a")
    assert found.reasons == {1: "no mark", 3: "off"}
    rate = judges.win_rate(found)
    assert (rate.wins, rate.errors, rate.waiting, rate.rate) == (3, 1, 1, 1.0)
    shown = str(rate)
    assert "1 errors and 1 waiting apart" in shown
    assert "mean length 3.7 against 2.0 words" in shown
    assert shown.endswith("judge: mixed")


def test_nothing_decided_is_nan_and_not_zero():
    rate = judges.win_rate(judges.compare(always("error"), PAIRS))
    assert np.isnan([rate.rate, rate.low, rate.high, rate.controlled]).all()
    assert "nan" in str(rate)


def test_the_interval_is_near_the_exact_one():
    outcomes = ["a"] * 60 + ["b"] * 40
    lengths = np.ones((100, 2))
    judged = judges.Judged(
        judge="planted",
        outcomes=tuple(outcomes),
        lengths=lengths,
        unit="words",
        first=0.0,
        reasons={},
    )
    rate = judges.win_rate(judged, resamples=4000)
    exact = stats.binomtest(60, 100).proportion_ci(method="wilson")
    np.testing.assert_allclose([rate.low, rate.high], exact, atol=0.02)
    # one length for all: nothing to control for
    np.testing.assert_allclose(rate.controlled, 0.6, atol=1e-3)


def test_length_control_takes_a_planted_preference_for_length_away():
    """Longer answers win whoever wrote them; a writes longer ones."""
    longer = RNG.normal(3.0, 4.0, 4000)
    wins = RNG.random(4000) < 1 / (1 + np.exp(-2 * np.tanh(longer / longer.std())))
    lengths = np.stack([10 + longer, np.full(4000, 10.0)], axis=1)
    controlled = judges.length_controlled(wins.astype(float), lengths)
    assert wins.mean() > 0.6
    np.testing.assert_allclose(controlled, 0.5, atol=0.04)
    flipped = judges.length_controlled(1.0 - wins, lengths[:, ::-1])
    np.testing.assert_allclose(flipped, 1 - controlled, atol=1e-4)
    assert judges.length_controlled(np.ones(5), RNG.random((5, 2))) > 0.99


def test_agreement_is_cohens_kappa():
    """Against the table of a textbook: 45, 15, 25, 15 of 100 give 0.130."""
    both = [("a", "a")] * 45 + [("a", "b")] * 15 + [("b", "a")] * 25 + [("b", "b")] * 15

    def of(side):
        return judges.Judged(
            judge=f"judge {side}",
            outcomes=tuple(row[side] for row in both),
            lengths=np.ones((100, 2)),
            unit="words",
            first=0.0,
            reasons={},
        )

    found = judges.judge_agreement(of(0), of(1))
    np.testing.assert_allclose(found.kappa, 0.1304, atol=1e-4)
    assert found.share == 0.6
    assert found.low < 0.6 < found.high
    assert found.kappa_low < found.kappa < found.kappa_high
    assert "agree on 60.0 % of 100 pairs" in str(found)
    same = judges.judge_agreement(of(0), of(0))
    assert (same.share, same.kappa) == (1.0, 1.0)
    waits = of(1)._replace(outcomes=("waiting",) * 30 + of(1).outcomes[30:])
    assert judges.judge_agreement(of(0), waits).left_out == 30
    with pytest.raises(ValueError, match="no pair was decided by both"):
        judges.judge_agreement(of(0), of(1)._replace(outcomes=("error",) * 100))
    with pytest.raises(ValueError, match="the same pairs"):
        judges.judge_agreement(of(0), of(1)._replace(lengths=np.zeros((100, 2))))


def test_a_reward_model_is_named_as_one():
    def length(prompts, answers):
        return [len(answer) for answer in answers]

    judge = judges.reward_judge("of length", length)
    assert judge.name == "reward model of length"
    assert judges.compare(judge, PAIRS[:2]).outcomes == ("a", "b")
    for score, error in (
        (lambda prompts, answers: [1.0], "one score an answer"),
        (3, "expected score as a function"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            judges.reward_judge("x", score).decide(PAIRS)
    with pytest.raises(ValueError, match="name of the reward model"):
        judges.reward_judge(" ", length)
    nothing = judges.reward_judge("nan", lambda p, a: [float("nan")] * len(a))
    assert set(judges.compare(nothing, PAIRS).outcomes) == {"error"}


def test_a_judge_of_likelihood(tiny_llama):
    """The mean log-probability of an answer's tokens, from the losses of the model."""
    import jax.numpy as jnp

    from fedjax_fm import models

    model = models.from_pretrained(tiny_llama)
    tokenizer = models.load_tokenizer(tiny_llama)
    judge = judges.likelihood_judge("the tiny one", model, tokenizer)
    assert judge.name == "likelihood of the tiny one, mean of tokens"
    asked = [pair("love is blind", "xqz zqx vjk"), pair("", "so"), pair("now", "now")]
    expected = []
    for one in asked[:1]:
        means = []
        for answer in (one.a, one.b):
            prompt = tokenizer.encode(one.prompt).ids
            ids = prompt + tokenizer.encode(answer).ids
            labels = np.array([[-100] * len(prompt) + ids[len(prompt) :]])
            losses, counts = models.next_token_losses(
                model, jnp.array([ids]), None, jnp.asarray(labels)
            )
            means.append(-float(losses.sum() / counts.sum()))
        expected.append("a" if means[0] > means[1] else "b")
    found = judges.compare(judge, asked).outcomes
    assert found == (*expected, "error", "tie")


def test_pairs_without_a_reference_are_errors():
    for judge in (judges.rouge_judge(), judges.exact_judge()):
        found = judges.compare(judge, [pair("x", "y", "")])
        assert found.reasons == {0: "the pair has no reference"}


def test_a_folder_keeps_what_waits_for_later(tmp_path):
    off = always("waiting", "the one")
    found = judges.compare(off, PAIRS, folder=tmp_path)
    assert found.outcomes == ("waiting",) * 5
    with pytest.raises(ValueError, match="has outcomes of this judge already"):
        judges.compare(off, PAIRS, folder=tmp_path)
    other = judges.rouge_judge()
    with pytest.raises(FileNotFoundError, match="ROUGE-L to the reference"):
        judges.compare_waiting(other, tmp_path)
    asked = []

    def decide(pairs):
        asked.append(len(pairs))
        return other.decide(pairs)

    back = Judge("the one", decide)
    later = judges.compare_waiting(back, tmp_path)
    assert later.outcomes == judges.compare(other, PAIRS).outcomes
    np.testing.assert_array_equal(later.lengths, found.lengths)
    again = judges.compare_waiting(back, tmp_path)
    assert again.outcomes == later.outcomes
    assert asked == [5, 5]  # both orders once, and nothing the second time


@pytest.mark.parametrize(
    ("judge", "pairs", "error"),
    [
        ("rouge", PAIRS, "expected judge to be a Judge"),
        (judges.rouge_judge(), [], "at least one pair"),
        (judges.rouge_judge(), [("q", "a", "b")], "expected pair 0 to be a Pair"),
        (judges.rouge_judge(), [pair(3, "b")], "a of pair 0: expected text"),
        (Judge("lazy", lambda pairs: []), PAIRS, "'lazy' gave 0 decisions for 5"),
    ],
)
def test_what_is_refused(judge, pairs, error):
    with pytest.raises((TypeError, ValueError), match=error):
        judges.compare(judge, pairs)
