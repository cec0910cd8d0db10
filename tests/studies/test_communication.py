"""The study on what a byte buys, on made-up digits and with a random BERT."""

import dataclasses

import numpy as np
import pytest
from small_digits import small_digits
from small_runs import check_scores, run_arms, texts

from fedjax_fm.experiments.communication import STUDY, Config, data
from fedjax_fm.experiments.communication.training import scores
from fedjax_fm.experiments.shared import digits
from fedjax_fm.study.run import Run

SMALL = dataclasses.replace(Config().smoke(), image_rounds=1, image_cohort=3)
N = 6090  # weights of the net


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "digits", small_digits)
        yield run_arms(STUDY, SMALL, leave_out=("shuffled", "flasc", "soteriafl"))


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    STUDY.check_budgets(Config())
    assert set(found["untrained"].scores) == {"accuracy"}


def test_what_travels(found):
    up = {name: ran.run.bytes["uplink_bytes"] / 3 for name, ran in found.items()}
    down = {name: ran.run.bytes["downlink_bytes"] / 3 for name, ran in found.items()}
    assert up["fedavg"] == up["docofl"] == 4 * N
    assert up["fedpaq"] == N / 2 + 4
    assert up["diana"] == np.ceil(N / 5) + 4 * 24  # blocks of 256
    kept = 305  # a twentieth, each with its place in 13 bits
    assert up["topk"] == up["ef21"] == 4 * kept + np.ceil(kept * 13 / 8)
    assert up["fedlin"] == up["topk"] + 4 * N  # the sparse gradient, then the change
    assert up["fedobd"] < up["fedavg"] / 2
    assert down["fedobd"] < down["fedavg"] / 2
    for name in ("fedavg", "fedpaq", "topk", "diana", "ef21"):
        assert down[name] == 4 * N


def test_texts(tiny_bert):
    how = {"task": "text", "model": str(tiny_bert), "rank": 2, "text_rounds": 1}
    config = dataclasses.replace(SMALL, max_length=24, **how)
    kept = ("fedavg", "fedobd", "untrained")
    left = [arm.name for arm in STUDY.arms if arm.name not in kept]
    ran = run_arms(STUDY, config, leave_out=left)
    check_scores(STUDY, ran)
    final, tuning = (data(config, 0, split) for split in ("final", "tuning"))
    assert not texts(*final.clients, final.test) & texts(*tuning.clients, tuning.test)
    assert not texts(*final.clients) & texts(final.test)


def test_scores_are_read_from_the_curve():
    """FedAvg of ten clients of 1 MB each way, for ten rounds: budgets are a quarter."""
    config = dataclasses.replace(Config(), image_target=0.5, step_seconds=0.25)
    run = Run("x", config, 0, "final", {}, lambda: None)
    run.curve = [
        {
            "round": t,
            "eval_accuracy": t / 10,
            "uplink_bytes": 10e6 * t,
            "downlink_bytes": 0,
        }
        for t in range(1, 11)
    ]
    got = scores(run, rounds=10, plain=2_000_000, cohort=10)
    assert got["accuracy"] == 0.5  # 50 MB of 200
    assert got["rounds"] == 1.0
    # a second of steps a round; 8 s for a MB at 1 Mbit/s, of FedAvg 16
    assert got["slow"] == 0.4  # 42.5 s, and 9 s a round
    assert got["fast"] == 0.2  # 2.9 s, and 1.08 s a round
    costs = {name: got[f"to_{name}"] for name in ("up", "both", "slow", "fast")}
    expected = {"up": 50.0, "both": 50.0, "slow": 45.0, "fast": 5.4}
    assert costs == pytest.approx(expected)
