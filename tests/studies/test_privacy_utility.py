"""The study on privacy, with a tiny random model: what is trained, what it costs, and
who sees whose documents.
"""

import dataclasses
import functools

import jax
import pytest
import tiny_encoder
from study_arms import run_arm

from fedjax_fm import peft, trees
from fedjax_fm.experiments import privacy_utility
from fedjax_fm.experiments.privacy_utility import STUDY, Config, clients, training
from fedjax_fm.experiments.shared.sentences import sentences
from fedjax_fm.study.run import Run

CONFIG = dataclasses.replace(Config().smoke(), model="tiny", max_length=6, rank=2)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    tiny_encoder.install(monkeypatch, hidden_size=8, intermediate_size=12)
    yield
    sentences.cache_clear()
    clients.pool.cache_clear()


found = functools.partial(run_arm, STUDY, CONFIG)


NUMBERS = {
    "full": 8 * 12 + 12 + 12 * 8 + 8 + 4 * (64 + 8) + 4 * 8,
    "lora": 2 * 2 * 20,
    "ffa_lora": 2 * 20,
}
NUMBERS |= {"fed_sb": 2 * 2 * 2, "bitfit": 12 + 8 + 4 * 8 + 2 * 8, "head": 0}


@pytest.mark.parametrize("part", privacy_utility.PARTS)
def test_what_is_trained(part):
    run = Run(part, CONFIG, 0, "final", {}, lambda: STUDY.data(CONFIG, 0, "final"))
    adapted = peft.apply(run.data.model, training.method(part, run), jax.random.key(0))
    assert trees.size(adapted.delta) == NUMBERS[part] + 8 * 2 + 2


def test_bytes_follow_what_is_trained():
    scores, run = found("bitfit_noiseless")
    assert 0 <= scores["accuracy"] <= 1
    assert scores["noise"] == 0
    assert run.bytes["uplink_bytes"] % (4 * scores["numbers"]) == 0
    assert (
        0
        < run.bytes["uplink_bytes"]
        <= CONFIG.rounds * CONFIG.clients * 4 * scores["numbers"]
    )


def test_noise_grows_as_epsilon_falls():
    def of(epsilon):
        return training.multiplier(epsilon, CONFIG)

    assert of(0.1) > of(0.5) > of(2.0) > 0


def test_tuning_has_the_noise_of_a_run_of_the_study():
    (tuning, _), (final, _) = (
        found("head_eps0.5", seed, split)
        for seed, split in ((1000, "tuning"), (0, "final"))
    )
    assert tuning["noise"] == final["noise"] > 0


def test_controls_run_and_the_larger_class_is_a_share_of_the_test():
    scores = {
        control.arm: found(control.arm)[0]["accuracy"] for control in STUDY.controls
    }
    assert set(scores) == {"shuffled", "untrained", "larger_class"}
    label = STUDY.data(CONFIG, 0, "final").test["label"]
    assert scores["larger_class"] == max(label.mean(), 1 - label.mean())


def test_no_document_is_in_two_places():
    pool = clients.pool("tiny", 6, CONFIG.share)
    documents = {}
    for seed, split in ((1000, "tuning"), (0, "final"), (1, "final")):
        dealt, test = clients.deal(pool, CONFIG, seed, split)
        assert all(len(set(pool.domain[own])) == 1 for own in dealt)
        train, test = set(pool.document[dealt.ravel()]), set(pool.document[test])
        assert not train & test
        documents[seed] = train | test
    assert not documents[1000] & (documents[0] | documents[1])


def test_every_arm_with_noise_takes_the_rate_of_epsilon_one_half():
    noisy = [arm for arm in STUDY.arms if arm.name.endswith(("eps0.1", "eps2"))]
    assert {arm.like.split("_eps")[1] for arm in noisy} == {"0.5"}
    assert len(STUDY.comparisons) == 5 * 4
    STUDY.check_budgets(Config())
