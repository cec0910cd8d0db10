"""The study on sparse federated methods, small."""

import dataclasses

import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm.experiments.sparse_fl import STUDY, Config, data
from fedjax_fm.experiments.sparse_fl.arms import TIME

CONFIG = dataclasses.replace(Config().smoke(), rounds=4)
SIZE = 64 * 16 + 16 * 16 + 160


@pytest.fixture(scope="module")
def dealt():
    return data(CONFIG, 0, "final")


@pytest.fixture(scope="module")
def found():
    return run_arms(STUDY, CONFIG)


def rows(arrays):
    return {row.tobytes() for row in np.asarray(arrays["x"])}


def test_no_image_is_in_two_places(dealt):
    parts = [dealt.clients.arrays, dealt.own.arrays, dealt.test, dealt.public]
    sets = [rows(part) for part in parts]
    assert sum(map(len, sets)) == len(set.union(*sets))
    assert dealt.own.n_clients == dealt.clients.n_clients
    assert (dealt.own.sizes >= 2).all()


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    assert found["fedavg"].scores["density"] == 1
    assert found["fedtiny"].scores["density"] == pytest.approx(0.1, abs=0.01)
    assert found["one_percent"].scores["density"] == pytest.approx(0.1, abs=0.01)


def test_an_arm_on_own_tests_is_the_same_run(found):
    assert found["fedavg_own"].scores["accuracy"] == found["fedavg"].scores["own"]
    assert found["fedavg_own"].run.bytes == found["fedavg"].run.bytes
    own = found["lotteryfl"].scores["own"]
    assert found["lotteryfl_own"].scores["accuracy"] == own


def test_prunefl_is_billed_for_its_first_stage_and_fedavg_gets_its_time(found):
    """Down the whole network, once; in the rounds no more than FedAvg sends."""
    sent = found["prunefl"].run.bytes
    dense = found["fedavg"].run.bytes
    n_masks = 3 * CONFIG.rounds  # all 3 clients of a round may fetch a mask
    squares = 3 * CONFIG.rounds * 4 * SIZE
    most = dense["downlink_bytes"] + 4 * SIZE + n_masks * (SIZE // 8 + 1)
    assert 4 * SIZE < sent["downlink_bytes"] <= most
    assert sent["uplink_bytes"] > squares * 2 // 3  # every round makes a mask here
    spent = found["fedavg_in_time"].run.notes
    each = TIME.constant + TIME.of_leaf("") * SIZE
    assert 1 < spent["rounds"] < CONFIG.rounds
    assert spent["rounds"] * each <= spent["seconds"] < (spent["rounds"] + 1) * each


def test_the_narrow_model_is_a_quarter_as_wide(found):
    narrow = 64 * 4 + 4 * 4 + 40
    share = found["narrow"].run.bytes["uplink_bytes"]
    assert share / found["fedavg"].run.bytes["uplink_bytes"] == narrow / SIZE
