"""The study on FedPM, on a few artificial images: who has which, what is sent, and that
all arms come to an end.
"""

import dataclasses
import functools

import numpy as np
import pytest
from small_digits import numbers, small_digits
from study_arms import run_arm

from fedjax_fm.experiments.fedpm import STUDY, Config
from fedjax_fm.experiments.shared import digits

CONFIG = dataclasses.replace(
    Config(), clients=9, alpha=1.0, test=60, width=8, rounds=2, epochs=1, seeds=(0, 1)
)
FLOATS = 64 * 8 + 8 * 8 + 8 * 10

found = functools.partial(run_arm, STUDY, CONFIG, learning_rate=0.3)


@pytest.fixture(autouse=True)
def _artificial(monkeypatch):
    monkeypatch.setattr(digits, "digits", small_digits)


def test_no_image_is_in_two_places():
    seen = {}
    for seed, split in ((1000, "tuning"), (0, "final"), (1, "final")):
        dealt = digits.deal(
            seed, split, clients=9, alpha=0.5, test=60, public=30, smallest=3
        )
        parts = [
            numbers(dealt.test),
            numbers(dealt.public),
            numbers(dealt.clients.arrays),
        ]
        seen[seed] = set().union(*parts)
        assert sum(map(len, parts)) == len(seen[seed])
        assert dealt.clients.sizes.min() >= 3
    assert seen[0] == seen[1]
    assert not seen[1000] & seen[0]
    assert len(seen[1000]) + len(seen[0]) == 480


def test_seeds_deal_anew_and_tuning_is_a_third():
    tuning, first, second = (
        STUDY.data(CONFIG, *which)
        for which in ((1000, "tuning"), (0, "final"), (1, "final"))
    )
    assert numbers(first.test) != numbers(second.test)
    assert (tuning.clients.n_clients, first.clients.n_clients) == (3, 9)
    assert (len(tuning.test["label"]), len(first.test["label"])) == (20, 60)
    # A client has about as many images of its own.
    assert tuning.clients.n_examples / 3 == pytest.approx(
        first.clients.n_examples / 9, rel=0.1
    )


def test_masks_cost_a_bit_and_theta_32():
    scores, run = found("fedpm")
    came = CONFIG.rounds * (CONFIG.clients // 2)
    assert run.bytes == {
        "uplink_bytes": came * FLOATS // 8,
        "downlink_bytes": came * 4 * FLOATS,
    }
    assert set(scores) == {score.name for score in STUDY.all_scores}
    assert np.isfinite(list(scores.values())).all()
    assert scores["coded"] == pytest.approx(scores["entropy"], abs=4 / FLOATS)
    assert scores["coded"] < scores["coded by layer"] + 32 / FLOATS


def test_a_sparse_start_sends_fewer_ones():
    dense, sparse = found("fedpm")[0], found("sparse")[0]
    assert sparse["ones"] < dense["ones"] - 0.1
    assert sparse["coded"] < dense["coded"]


def test_fedavg_learns_and_sends_floats():
    longer = dataclasses.replace(CONFIG, rounds=20)
    scores, run = run_arm(STUDY, longer, "fedavg", learning_rate=0.3)
    assert (
        run.bytes["uplink_bytes"] == longer.rounds * (CONFIG.clients // 2) * 4 * FLOATS
    )
    assert scores["accuracy"] > 2 * found("largest_class")[0]["accuracy"]


@pytest.mark.parametrize("name", ["softening", "reset", "never_learns", "shuffled"])
def test_the_other_arms(name):
    assert 0 <= found(name)[0]["accuracy"] <= 1


def test_what_is_tuned_and_what_must_fail():
    STUDY.check_budgets(Config())
    assert {arm.name for arm in STUDY.arms if arm.grid} == {"fedpm", "sparse", "fedavg"}
    assert {control.arm for control in STUDY.controls} == {
        "never_learns",
        "shuffled",
        "largest_class",
    }
