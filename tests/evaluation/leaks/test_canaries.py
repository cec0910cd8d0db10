"""Canaries: where they are put, what exposure is, and what a model has learnt of them."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

import fedjax_fm as ffm
from fedjax_fm import models, peft, tasks
from fedjax_fm.evaluation.leaks import (
    CHANCE,
    TokenScores,
    canary_rows,
    candidate_secrets,
    chance_of_rank,
    draw_canaries,
    exposure,
    least_likely,
    mean_exposure,
    mean_log_p,
    membership,
    one_run_epsilon,
    token_scores,
    with_canaries,
)

# Exposure


def test_exposure_is_the_rank_by_sorting():
    random = np.random.default_rng(0)
    candidates = random.normal(size=(20, 127))
    scores = random.normal(size=20)
    ranks = [
        1 + sorted(row, reverse=True).index(score)
        for score, row in zip(
            scores, np.concatenate([candidates, scores[:, None]], axis=1), strict=True
        )
    ]
    np.testing.assert_allclose(exposure(scores, candidates), 7 - np.log2(ranks))
    # What only grows changes nothing.
    np.testing.assert_array_equal(
        exposure(np.exp(scores), np.exp(candidates)), exposure(scores, candidates)
    )


def test_ties_are_at_the_middle_rank():
    assert exposure([1.0], [[1.0, 1.0]]).tolist() == [np.log2(3) - 1]


def test_a_secret_like_all_others_has_the_exposure_of_chance():
    random = np.random.default_rng(1)
    found = exposure(random.normal(size=4000), random.normal(size=(4000, 255)))
    assert found.mean() == pytest.approx(CHANCE, abs=0.08)
    # Its law: ln 2 times exposure is exponential.
    assert stats.kstest(np.log(2) * found, "expon").pvalue > 0.01


def test_the_interval_of_the_mean_covers_chance():
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(500):
        found = mean_exposure(random.exponential(CHANCE, 6))
        hits += found.low <= CHANCE <= found.high
    assert 0.92 <= hits / 500 <= 0.98


def test_privacy_bounds_the_chance_of_a_rank():
    assert chance_of_rank(0.0, 0.0, 3, 1000) == pytest.approx(0.003)
    assert chance_of_rank(float("inf"), 1e-5, 1, 1000) == 1.0
    assert chance_of_rank(1.0, 0.01, 1, 1000) == pytest.approx(np.e / 1000 + 0.01)


# Rows


def rows(n=2, width=10, labels=10):
    ids = np.ones((n, width), np.int32)
    return {
        "input_ids": ids,
        "attention_mask": ids,
        "labels": np.ones((n, labels), int),
    }


def test_a_canary_of_a_decoder():
    found = canary_rows([[5, 6]], [[7, 8, 9]], rows(), pad=0)
    assert found["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0, 0, 0, 0, 0]]
    assert found["attention_mask"].tolist() == [[1] * 5 + [0] * 5]
    assert found["labels"].tolist() == [[-100, -100, 7, 8, 9] + [-100] * 5]


def test_a_canary_of_an_encoder_decoder():
    found = canary_rows([[5, 6]], [[7, 8, 9]], rows(labels=4), pad=0)
    assert found["input_ids"].tolist() == [[5, 6] + [0] * 8]
    assert found["attention_mask"].tolist() == [[1, 1] + [0] * 8]
    assert found["labels"].tolist() == [[7, 8, 9, -100]]


def test_coins_plant_and_clients_differ():
    canaries = draw_canaries(range(20), 200, 300, seed=3)
    assert len(set(canaries.clients.tolist())) == 200
    assert 70 < canaries.is_planted.sum() < 130  # 5 deviations of a fair coin
    clients = [rows(n=1 + k % 3) for k in range(300)]
    found = with_canaries(clients, canaries, repeats=2, pad=0)
    more = np.array([len(one["labels"]) for one in found]) - [
        1 + k % 3 for k in range(300)
    ]
    expected = np.zeros(300, int)
    expected[canaries.clients[canaries.is_planted]] = 2
    assert more.tolist() == expected.tolist()
    k = int(np.flatnonzero(canaries.is_planted)[0])
    last = found[canaries.clients[k]]["input_ids"][-1]
    assert last[:8].tolist() == [*canaries.prefixes[k], *canaries.secrets[k]]


def test_what_cannot_be_planted_is_refused():
    with pytest.raises(
        ValueError, match=r"canaries are texts: .* got \['label', 'x'\]"
    ):
        canary_rows([[1]], [[2]], {"x": np.zeros((1, 3)), "label": np.zeros(1)})
    with pytest.raises(
        ValueError, match="needs 11 tokens of input_ids, and rows have 10"
    ):
        canary_rows([[1] * 6], [[2] * 5], rows())
    with pytest.raises(ValueError, match="n_canaries=4"):
        draw_canaries(range(9), 4, 3)
    with pytest.raises(ValueError, match="two or more different tokens"):
        draw_canaries([1, 1, 2], 1, 3)
    with pytest.raises(ValueError, match="belongs to client"):
        with_canaries([rows()], draw_canaries(range(9), 30, 30, seed=1))
    with pytest.raises(ValueError, match=r"shapes \[2, 3\] and \[3\]"):
        exposure(np.zeros(3), np.zeros((2, 3)))


# A model that was trained on them


VOCABULARY, CLIENTS, EACH, WIDTH = 40, 16, 3, 8


def made():
    config = models.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=24, n_layer=1, n_head=2
    )
    return peft.apply(models.GPT2LMHeadModel(config, nnx.Rngs(0)), peft.full())


def texts(seed, n):
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (n, WIDTH), np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}


@pytest.fixture(scope="module")
def trained():
    """(adapted, clients, canaries, delta after overfitting)."""
    adapted = made()
    clients = [texts(k, EACH) for k in range(CLIENTS)]
    canaries = draw_canaries(range(VOCABULARY), CLIENTS, CLIENTS)
    population = ffm.Population.from_clients(with_canaries(clients, canaries))
    algorithm = ffm.fedavg(
        tasks.language_modeling(adapted),
        optax.adam(0.01),
        local_steps=8,
        batch_size=4,
    )
    simulator = ffm.Simulator(
        algorithm, population, backbone=adapted.backbone, cohort_size=CLIENTS, seed=0
    )
    state, _ = simulator.run(simulator.init(adapted.delta), 40)
    return adapted, clients, canaries, jax.tree.map(np.asarray, state.delta)


def attacks(adapted, delta, clients):
    """Membership by each score."""
    members = {
        name: np.concatenate([one[name] for one in clients]) for name in clients[0]
    }
    others = texts(99, CLIENTS * EACH)
    before, after = [], []
    for arrays in (members, others):
        before.append(token_scores(adapted, adapted.delta, adapted.backbone, arrays))
        after.append(token_scores(adapted, delta, adapted.backbone, arrays))
    scores = {
        "loss": [mean_log_p(one) for one in after],
        "least": [least_likely(one) for one in after],
        "calibrated": [
            mean_log_p(one) - mean_log_p(base)
            for one, base in zip(after, before, strict=True)
        ],
    }
    return {name: membership(*pair) for name, pair in scores.items()}


def risen(adapted, delta, canaries):
    """(exposures, gains in log-likelihood) of the canaries."""
    others = candidate_secrets(canaries, 255)
    like, scores = texts(0, 1), {}
    for when, parts in (("before", adapted.delta), ("after", delta)):
        each = []
        for prefix, secret in zip(canaries.prefixes, canaries.secrets, strict=True):
            secrets = np.concatenate([secret[None], others])
            made_rows = canary_rows(np.repeat(prefix[None], 256, axis=0), secrets, like)
            tokens = token_scores(
                adapted, parts, adapted.backbone, made_rows, batch_size=256
            )
            each.append(tokens.log_p.sum(axis=1))
        scores[when] = np.array(each)
    found = exposure(scores["after"][:, 0], scores["after"][:, 1:])
    return found, (scores["after"] - scores["before"])[:, 0]


def test_an_overfitted_model_gives_its_members_away(trained):
    adapted, clients, _, delta = trained
    for name, found in attacks(adapted, delta, clients).items():
        assert found.area.low > 0.7, name
        assert found.is_found


def test_a_model_that_was_not_trained_tells_nothing(trained):
    adapted, clients, canaries, _ = trained
    found = attacks(adapted, adapted.delta, clients)
    for name in ("loss", "least"):
        assert found[name].area.low <= 0.5 <= found[name].area.high, name
    assert found["calibrated"].area.value == 0.5  # every gain is 0
    exposures, gains = risen(adapted, adapted.delta, canaries)
    mean = mean_exposure(exposures)
    assert mean.low <= CHANCE <= mean.high
    assert one_run_epsilon(gains, canaries.is_planted).epsilon == 0.0


def test_planted_canaries_rise_and_the_others_do_not(trained):
    adapted, _, canaries, delta = trained
    exposures, gains = risen(adapted, delta, canaries)
    planted = mean_exposure(exposures[canaries.is_planted])
    left_out = mean_exposure(exposures[~canaries.is_planted])
    assert planted.low > CHANCE
    assert planted.value > 6  # of 8
    assert left_out.low <= CHANCE <= left_out.high
    assert one_run_epsilon(gains, canaries.is_planted).epsilon > 0.5


# Scores of tokens


def test_scores_of_tokens_are_the_log_softmax(trained):
    adapted, clients, _, delta = trained
    arrays = {name: column.copy() for name, column in clients[0].items()}
    arrays["labels"][0, 3] = -100
    arrays["attention_mask"][1, 5:] = 0
    found = token_scores(adapted, delta, adapted.backbone, arrays, batch_size=2)
    logits = adapted.model(delta, adapted.backbone)(
        arrays["input_ids"], arrays["attention_mask"]
    )
    log_p = np.asarray(jax.nn.log_softmax(logits))
    for row in range(EACH):
        for t in range(1, WIDTH):
            counts = not (row == 0 and t == 3) and not (row == 1 and t >= 5)
            assert found.counts[row, t - 1] == counts
            expected = log_p[row, t - 1, arrays["input_ids"][row, t]] if counts else 0.0
            assert found.log_p[row, t - 1] == pytest.approx(expected, abs=1e-4)
    task = tasks.language_modeling(adapted)
    losses = ffm.evaluate(task, delta, adapted.backbone, arrays)["loss"]
    np.testing.assert_allclose(mean_log_p(found), -losses, rtol=1e-5)


def test_all_tokens_of_min_k_are_the_loss():
    random = np.random.default_rng(0)
    counts = random.random((30, 9)) < 0.7
    scores = TokenScores(np.where(counts, random.normal(size=(30, 9)), 0.0), counts)
    np.testing.assert_allclose(least_likely(scores, 1.0), mean_log_p(scores))
    for row, found in enumerate(least_likely(scores, 0.4)):
        own = np.sort(scores.log_p[row][counts[row]])
        taken = max(int(0.4 * len(own)), 1)
        assert found == pytest.approx(own[:taken].mean() if len(own) else 0.0)
