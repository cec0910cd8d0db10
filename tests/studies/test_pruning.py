"""The study on pruning while fine-tuning, with a random BERT on made-up sentences."""

import dataclasses

import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm.datasets import Table
from fedjax_fm.datasets.table import text_column
from fedjax_fm.experiments.gate.tasks import Rows
from fedjax_fm.experiments.pruning import DENSITIES, STUDY, Config, data
from fedjax_fm.experiments.shared import words

KEPT = ("dense", "random_15", "magnitude_15", "gradual_15", "movement_15", "blocks_15")
KEPT += ("movement_5", "shuffled", "untrained")


@pytest.fixture(scope="module")
def config(tiny_bert):
    config = dataclasses.replace(Config().smoke(), model=str(tiny_bert))
    return dataclasses.replace(config, rounds=5, n_layers=2)


@pytest.fixture(autouse=True, scope="module")
def made_up():
    n = 60
    columns = {name: np.empty(n, object) for name in ("tokens", "labels")}
    for k in range(n):
        columns["tokens"][k] = (("good", "bad", "fine", "poor")[k % 4], "movie", str(k))
        columns["labels"][k] = (k % 2, 1, 0)
    columns["document"] = text_column([f"text {k // 3}" for k in range(n)])
    rows = Rows(
        table=Table(columns, {}),
        classes=2,
        train=np.arange(36),
        validation=np.arange(36, 48),
        test=np.arange(48, 60),
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(words, "read", lambda name: rows)
    yield rows
    patch.undo()


@pytest.fixture(scope="module")
def found(config, made_up):
    left = [arm.name for arm in STUDY.arms if arm.name not in KEPT]
    return run_arms(STUDY, config, leave_out=left)


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    for name in ("random_15", "magnitude_15", "gradual_15", "movement_15"):
        assert found[name].scores["density"] == pytest.approx(0.15, abs=0.01), name
    assert found["movement_5"].scores["density"] == pytest.approx(0.05, abs=0.01)
    assert found["dense"].scores["density"] == 1


def test_every_method_has_every_density():
    names = {arm.name for arm in STUDY.arms}
    for method in ("random", "magnitude", "gradual", "movement", "blocks"):
        assert {f"{method}_{percent}" for percent in DENSITIES} <= names


def test_only_the_last_layers_are_trained(config, found):
    """Kernels and biases of layers of width 16, and the head; movement adds scores."""
    n, layer = config.n_layers, 4 * (16 * 16 + 16) + 2 * 16 * 32 + 32 + 16 + 4 * 16
    head = 16 * 2 + 2
    sent = config.rounds * config.cohort * 4 * (n * layer + head)
    assert found["dense"].run.bytes["uplink_bytes"] == sent
    kernels = n * (4 * 16 * 16 + 2 * 16 * 32)
    more = config.rounds * config.cohort * 4 * kernels
    assert found["movement_15"].run.bytes["uplink_bytes"] == sent + more
    assert found["magnitude_15"].run.bytes["uplink_bytes"] < sent


def test_documents_of_clients_tuning_and_test_are_apart(config):
    def seen(dealt):
        rows = [*dealt.clients, dealt.test]
        return [{x.tobytes() for x in one["hidden"]} for one in rows]

    final, tuning = seen(data(config, 0, "final")), seen(data(config, 1000, "tuning"))
    sets = [*final, *tuning]
    assert sum(map(len, sets)) == len(set.union(*sets))
