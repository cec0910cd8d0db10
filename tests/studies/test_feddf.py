"""The study on FedDF and FedMD, on a few artificial images: whose models are judged,
what is sent, what is like what.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small_digits import numbers, small_digits
from study_arms import run_arm

from fedjax_fm import trees
from fedjax_fm.experiments.feddf import STUDY, Config
from fedjax_fm.experiments.feddf.models import NAMES, accuracies, weights
from fedjax_fm.experiments.shared import digits

SMALL = {
    "clients": 6,
    "alpha": 1.0,
    "test": 60,
    "public": 60,
    "rounds": 1,
    "server_steps": 2,
}
CONFIG = dataclasses.replace(Config().smoke(), **SMALL)

found = functools.partial(run_arm, STUDY, CONFIG)


@pytest.fixture(autouse=True)
def _artificial(monkeypatch):
    monkeypatch.setattr(digits, "digits", small_digits)


def test_the_public_images_are_nobodys_and_tuning_has_others():
    final, tuning = STUDY.data(CONFIG, 0, "final"), STUDY.data(CONFIG, 1000, "tuning")
    mine = [numbers(part) for part in (final.test, final.public, final.clients.arrays)]
    theirs = [
        numbers(part) for part in (tuning.test, tuning.public, tuning.clients.arrays)
    ]
    assert len(set().union(*mine, *theirs)) == sum(map(len, [*mine, *theirs])) == 480
    assert tuning.clients.n_clients == CONFIG.clients // 3


def test_a_model_is_judged_as_its_architecture():
    test = STUDY.data(CONFIG, 0, "final").test
    models = weights(0)
    each = accuracies(list(models), np.arange(2), test)
    assert each["accuracy"] == pytest.approx(
        (each["perceptron"] + each["convolutions"]) / 2
    )
    uneven = accuracies([models[1], models[0], models[1]], np.array([1, 0, 1]), test)
    assert uneven == pytest.approx(each)


def test_feddf_sends_models():
    scores, run = found("feddf")
    sizes = [4 * trees.size(model) for model in weights(0)]
    up, down = (run.bytes[name] for name in ("uplink_bytes", "downlink_bytes"))
    assert up in [k * sizes[0] + (3 - k) * sizes[1] for k in range(4)]
    assert down == up
    assert set(scores) == {"accuracy", *NAMES}
    assert np.isfinite(list(scores.values())).all()
    assert run.curve[-1]["eval_accuracy"] == pytest.approx(scores["accuracy"])


def test_fedmd_sends_answers():
    scores, run = found("fedmd")
    assert run.bytes["uplink_bytes"] == CONFIG.rounds * CONFIG.clients * 40 * 10 * 4
    assert 0 <= scores["accuracy"] <= 1


def test_fedmds_start_has_learned_from_public_labels():
    assert found("start")[0]["accuracy"] > found("untrained")[0]["accuracy"] + 0.2


def test_all_four_try_nine_settings():
    STUDY.check_budgets(Config())
    tuned = {arm.name: len(arm.points(Config())) for arm in STUDY.arms if arm.grid}
    assert tuned == dict.fromkeys(
        ["groups_alone", "feddf", "clients_alone", "fedmd"], 9
    )
    assert {control.arm for control in STUDY.controls} == {
        "shuffled_teachers",
        "untrained",
    }


def test_the_two_models_have_the_sizes_that_are_told():
    assert [
        sum(leaf.size for leaf in jax.tree.leaves(model)) for model in weights(0)
    ] == [9610, 6090]
