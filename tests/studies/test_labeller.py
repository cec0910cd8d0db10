"""The study on a foundation model as labeller, without the foundation model."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize
from small_runs import check_scores, run_arms

from fedjax_fm.experiments.labeller import STUDY, Config
from fedjax_fm.experiments.labeller.students import LABELS, SOFT, weights
from fedjax_fm.experiments.labeller.texts import Data, head
from fedjax_fm.study.judged import joined

CONFIG = Config().smoke()
TEACHER_BYTES = 1000


def part(n, seed):
    """Sentences whose word tells their label, and a teacher that is right."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, n).astype(np.int32)
    said = np.where(np.arange(2) == label[:, None], 2.0, -2.0)
    return {
        "ids": np.tile(label[:, None], (1, 3)).astype(np.int32),
        "mask": np.ones((n, 3), np.int32),
        "label": label,
        "said": said.astype(np.float32),
    }


@pytest.fixture(scope="module")
def dealt():
    clients = [part(6, k) for k in range(3)]
    return Data(clients, part(9, 7), part(20, 8), TEACHER_BYTES)


@pytest.fixture(scope="module")
def found(dealt):
    study = dataclasses.replace(STUDY, data=lambda config, seed, split: dealt)
    return run_arms(study, CONFIG)


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    STUDY.check_budgets(Config())
    assert found["teacher"].scores["accuracy"] == 1.0
    # The teacher is right, so that its classes are the true labels.
    assert found["taught"].scores == found["true"].scores


def test_the_teacher_travels_once_to_each_client(found):
    sent = {name: found[name].run.bytes["downlink_bytes"] for name in found}
    assert sent["taught"] - sent["true"] == 3 * TEACHER_BYTES
    assert sent["soft"] == sent["taught"]
    assert sent["server"] == sent["teacher"] == 0


def test_losses_are_those_of_the_formulas(dealt):
    delta, rows = weights(CONFIG, 0), dealt.test
    table, kernel = np.asarray(delta["table"]), np.asarray(delta["kernel"])
    logits = table[rows["ids"]].mean(axis=1) @ kernel + np.asarray(delta["bias"])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    hard, _ = LABELS.loss(delta, (), rows, None)
    expected = -log_p[np.arange(len(log_p)), rows["label"]]
    np.testing.assert_allclose(hard, expected, rtol=1e-5)
    said = np.exp(rows["said"]) / np.exp(rows["said"]).sum(axis=1, keepdims=True)
    soft, _ = SOFT.loss(delta, (), rows, None)
    divergence = (said * (np.log(said) - log_p)).sum(axis=1)
    np.testing.assert_allclose(soft, divergence, rtol=1e-4)


def test_padding_is_not_read(dealt):
    delta, rows = weights(CONFIG, 0), joined(dealt.clients)
    mask = np.array([[1, 1, 0]] * len(rows["label"]))
    other = rows["ids"].copy()
    other[:, 2] = 40
    one, _ = LABELS.loss(delta, (), {**rows, "mask": mask}, None)
    same, _ = LABELS.loss(delta, (), {**rows, "mask": mask, "ids": other}, None)
    np.testing.assert_array_equal(one, same)


def test_the_head_goes_where_logistic_regression_goes():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 3)).astype(np.float32)
    label = (x[:, 0] + random.normal(size=200) > 0).astype(np.int32)
    config = Config(teacher_steps=2000, teacher_rate=0.05)
    said = head(config, {"x": x, "label": label})(x)
    scaled = np.c_[(x - x.mean(axis=0)) / x.std(axis=0), np.ones(200)]

    def loss(w):
        return np.log1p(np.exp(-(2 * label - 1) * (scaled @ w))).mean()

    best = optimize.minimize(loss, np.zeros(4)).x
    np.testing.assert_allclose(said[:, 1] - said[:, 0], scaled @ best, atol=0.02)
