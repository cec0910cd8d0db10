"""The study on models of clients' own, with a random BERT of two layers."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import check_scores, run_arms, texts

from fedjax_fm.experiments.personal import STUDY, Config, clients, data

# one of each kind: a personal part, mixed products, several models, an end of fine-tuning
KEPT = ("local", "fedper", "apfl", "ifca", "fedbabu")


@pytest.fixture(scope="module")
def config(tiny_bert):
    sizes = {"rank": 2, "test": 5, "own_steps": 1, "max_length": 40}
    return dataclasses.replace(Config().smoke(), model=str(tiny_bert), **sizes)


@pytest.fixture(scope="module")
def found(config):
    left = [arm.name for arm in STUDY.arms if arm.name not in KEPT]
    return run_arms(STUDY, config, leave_out=left)


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    assert all(len(ran.run.clients) == 8 for ran in found.values())
    assert all(len(ran.scores) == 5 for ran in found.values())


def test_what_travels(config, found):
    """8 clients that train, 8 new ones that download what they begin with."""
    delta = data(config, 0, "final").adapted.delta
    paths = jax.tree.leaves_with_path(delta)
    whole = sum(leaf.nbytes for _, leaf in paths)
    head = sum(leaf.nbytes for path, leaf in paths if "lora" not in str(path))
    assert 0 < head < whole
    rounds = config.rounds
    up = {name: ran.run.bytes["uplink_bytes"] for name, ran in found.items()}
    assert up["local"] == 0
    assert up["fedper"] == up["fedbabu"] == 8 * rounds * (whole - head)
    assert up["apfl"] == 8 * rounds * whole
    assert up["ifca"] == 8 * rounds * (whole + 1)  # and one bit for two clusters
    down = {name: ran.run.bytes["downlink_bytes"] for name, ran in found.items()}
    assert down["ifca"] == 8 * rounds * 2 * whole + 8 * 2 * whole
    assert down["fedbabu"] == 8 * rounds * (whole - head) + 16 * whole


def test_half_of_the_clients_of_a_domain_are_of_the_other_mind(config, monkeypatch):
    made = data(config, 0, "final")
    assert len(made.clients) == len(made.new) == 8
    monkeypatch.setattr(clients, "turned", lambda rows: rows)
    plain = data(config, 0, "final")
    for group, same in ((made.clients, plain.clients), (made.new, plain.new)):
        turned = [
            not np.array_equal(a.train["label"], b.train["label"])
            for a, b in zip(group, same, strict=True)
        ]
        assert turned == [False, True] * 4


def test_no_text_is_in_two_places(config):
    final, tuning = (data(config, 0, split) for split in ("final", "tuning"))
    everybody = [*final.clients, *final.new]
    train = texts(*(one.train for one in everybody))
    assert train.isdisjoint(texts(*(one.test for one in everybody)))
    others = [*tuning.clients, *tuning.new]
    used = texts(*(part for one in others for part in (one.train, one.test)))
    tested = texts(*(one.test for one in everybody))
    assert used.isdisjoint(train | tested)
