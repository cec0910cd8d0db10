"""The study on robust rules, small."""

import dataclasses

import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm.experiments.robust_rules import STUDY, Config, arms, data
from fedjax_fm.robust import attacks
from fedjax_fm.study.run import Run

CONFIG = dataclasses.replace(Config().smoke(), rounds=6, width=16)
KEPT = ("mean", "median", "norm_bound", "fltrust", "untrained")


@pytest.fixture(scope="module")
def found():
    left = [arm.name for arm in STUDY.arms if arm.name not in KEPT]
    return run_arms(STUDY, CONFIG, leave_out=left)


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    for ran in found.values():
        attacked = [ran.scores[case] for case in arms.CASES[1:]]
        assert ran.scores["accuracy"] == min(attacked)


def test_noise_breaks_the_mean_and_not_the_median(found):
    mean, median = found["mean"].scores, found["median"].scores
    assert mean["no_liars"] > 0.3 > mean["noise"] + 0.05
    assert median["noise"] > median["no_liars"] - 0.15


def test_every_rule_of_the_package_has_an_arm():
    rules = {"mean", "median", "trimmed", "krum", "multi_krum", "bulyan", "geometric"}
    rules |= {"clipping", "norm_bound", "fltrust", "signs"}
    assert set(arms.RULES) == rules
    budgets = {len(getattr(Config(), f"{one.chooses}s")) for one in arms.RULES.values()}
    assert budgets == {3}


def test_a_fifth_of_the_clients_lies_and_bulyan_can_stand_it():
    dealt = data(Config(), 0, "final")
    liars = attacks.liars_of(dealt.clients.n_clients, Config().liars, seed=0)
    assert len(liars) == 5
    assert dealt.clients.n_clients >= 4 * len(liars) + 3
    assert len(np.unique(dealt.public["label"])) == 10


def test_a_model_that_diverged_guesses(monkeypatch):
    def diverges(self, *given, **how):
        raise FloatingPointError("the loss of example 0 is not finite")

    monkeypatch.setattr(Run, "simulate", diverges)
    split, hyper = ("final", {"rate": 0.1})
    dealt = data(CONFIG, 0, split)
    scores = STUDY.arm("mean").run(Run("mean", CONFIG, 0, split, hyper, lambda: dealt))
    assert set(scores.values()) == {0.1}
