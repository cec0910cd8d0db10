"""The study on FedAvg's claim, on a few short roles."""

import dataclasses

import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm.experiments.local_work import STUDY, Config, data
from fedjax_fm.experiments.local_work.characters import WIDTH, windows
from fedjax_fm.experiments.local_work.training import scores
from fedjax_fm.study.run import Run

SMALL = dataclasses.replace(
    Config().smoke(), rounds=2, every=1, embedding=2, hidden=4, target=0.99
)


@pytest.fixture(scope="module")
def found():
    return run_arms(STUDY, SMALL)


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    STUDY.check_budgets(Config())


def test_what_travels(found):
    """Two rounds of three roles, equally much for all methods."""
    n = 96 * 2 + 16 * 4 + 4 + 4 * 96 + 96
    for name in ("fedsgd", "one", "five", "shuffled"):
        run = found[name].run
        assert run.bytes == {"uplink_bytes": 24 * n, "downlink_bytes": 24 * n}
        assert found[name].scores["rounds"] == 2


def test_a_run_ends_at_the_target():
    easy = dataclasses.replace(SMALL, target=0.0, rounds=5)
    left = [arm.name for arm in STUDY.arms if arm.name != "one"]
    ran = run_arms(STUDY, easy, leave_out=left)["one"]
    assert ran.scores["rounds"] == 1
    assert len(ran.run.curve) < 5


def test_rounds_are_those_of_the_first_hit():
    run = Run("x", dataclasses.replace(SMALL, target=0.5), 0, "final", {}, lambda: None)
    sent = {"uplink_bytes": 1_000_000, "downlink_bytes": 2_000_000}
    accuracies = (0.1, 0.5, 0.4)
    run.curve = [
        {"round": 2 * t + 2, "eval_accuracy": accuracy, **sent}
        for t, accuracy in enumerate(accuracies)
    ]
    assert scores(run) == {"rounds": 4.0, "accuracy": 0.5, "megabytes": 3.0}


def test_windows_are_the_eight_characters_before():
    made = windows("To be, or\nnot")
    text = "To be, or not"
    assert made["read"].shape == (len(text) - WIDTH, WIDTH)
    read = ["".join(chr(32 + c) for c in row) for row in made["read"]]
    assert read[0] == text[:WIDTH]
    assert read[-1] == text[-WIDTH - 1 : -1]
    assert "".join(chr(32 + c) for c in made["label"]) == text[WIDTH:]


def test_tuning_has_other_plays():
    def of(split):
        made = data(SMALL, 0, split)
        return {row.tobytes() for one in made.clients for row in one["read"]}

    final, tuning = of("final"), of("tuning")
    assert len(final & tuning) < 0.05 * min(len(final), len(tuning))  # common words
    again = data(SMALL, 0, "final")
    assert len(again.clients) == 8
    assert all(len(one["label"]) == 160 - WIDTH for one in again.clients)
    assert len(again.test["label"]) == 8 * (40 - WIDTH)
    other = data(SMALL, 1, "final")
    assert not np.array_equal(other.test["label"], again.test["label"])
