"""The study of a model's life, small."""

import dataclasses

import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm import trees
from fedjax_fm.experiments.life_cycle import STUDY, Config
from fedjax_fm.experiments.life_cycle.arms import as_scores, started
from fedjax_fm.experiments.life_cycle.stages import base, untrained
from fedjax_fm.experiments.life_cycle.texts import TASKS, data, permuted
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.study.run import Run

CONFIG = Config().smoke()
KEPT = ("diloco", "base", "adapters", "reused")


@pytest.fixture(scope="module")
def dealt():
    return data(CONFIG, 0, "final")


@pytest.fixture(scope="module")
def found():
    left = [arm.name for arm in STUDY.arms if arm.name not in KEPT]
    return run_arms(STUDY, CONFIG, leave_out=left)


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    STUDY.check_budgets(Config())


def test_one_base_for_all_and_an_adapter_that_does_nothing_yet(found, dealt):
    """At the rate of the configuration, DiLoCo's base is that of the arms."""
    assert CONFIG.base_rates == (CONFIG.base_rate,)
    assert found["diloco"].scores == found["base"].scores
    assert found["adapters"].scores["plays"] == pytest.approx(
        found["base"].scores["plays"], rel=1e-6
    )


def test_what_travels(found, dealt):
    run = Run("x", CONFIG, 0, "final", {}, lambda: dealt)
    n_adapter = trees.nbytes(started(run, random=True).delta)
    whole = trees.nbytes(untrained(run).delta)
    tuning = CONFIG.rounds * CONFIG.clients * n_adapter * len(TASKS)
    assert found["adapters"].run.bytes["uplink_bytes"] == tuning
    assert found["adapters"].run.bytes["downlink_bytes"] == tuning
    exchanges = CONFIG.base_rounds * CONFIG.workers
    assert found["diloco"].run.bytes["uplink_bytes"] == exchanges * whole
    for name in ("base", "reused"):  # nothing is sent for what is there
        assert not any(found[name].run.bytes.values())


def test_a_base_is_trained_once_for_a_seed(dealt):
    run = Run("x", CONFIG, 0, "final", {}, lambda: dealt)
    assert base(run) is base(run)
    assert not run.curve


def test_texts_of_tasks_have_clients_of_their_own(dealt):
    assert tuple(task.name for task in dealt.tasks) == TASKS
    trained = [
        {row.tobytes() for one in task.clients for row in one["input_ids"]}
        for task in dealt.tasks
    ]
    for k, task in enumerate(dealt.tasks):
        assert len(task.clients) == CONFIG.clients
        assert all(len(one["labels"]) == CONFIG.train for one in task.clients)
        tested = {row.tobytes() for row in task.test["input_ids"]}
        assert len(tested & trained[k]) < len(tested) // 2  # rows of 8 tokens may agree


def test_permuted_tokens_are_the_same_ones(dealt):
    one = dealt.tasks[0].clients[0]
    mixed, real = permuted(one, 0), one["attention_mask"] != 0
    assert np.array_equal(mixed["attention_mask"], one["attention_mask"])
    assert sorted(mixed["input_ids"][real]) == sorted(one["input_ids"][real])
    assert (mixed["labels"][~real] == IGNORED).all()
    assert not np.array_equal(mixed["input_ids"], one["input_ids"])


def test_scores_are_those_of_transfer(dealt):
    class Same:
        def loss(self, part):
            return 5.0

    run = Run("x", CONFIG, 0, "final", {}, lambda: dealt)
    table = np.array([[3.0, 3.0], [2.0, 2.5], [2.4, 1.0]])
    scores = as_scores(run, table, Same())
    assert scores["loss"] == pytest.approx(1.7)
    assert scores["forgetting"] == pytest.approx(0.4)
    assert scores["backward"] == pytest.approx(-0.4)
    assert scores["forward"] == pytest.approx(0.5)
    assert scores["plays"] == 5.0


def test_too_many_speeches_are_refused():
    with pytest.raises(ValueError, match="fewer workers or speeches"):
        data(dataclasses.replace(CONFIG, speeches=10**6), 0, "final")
