"""The study on private adapters, with a random BERT of two layers."""

import itertools

import jax
import numpy as np
import pytest
from small_runs import check_scores, run_arms, texts

from fedjax_fm.experiments.feddpa import STUDY, Config, data


@pytest.fixture(scope="module")
def config(tiny_bert):
    return Config(
        model=str(tiny_bert),
        max_length=40,
        rank=2,
        train=8,
        test=6,
        instances=3,
        rounds=2,
        tuning_rounds=1,
        local_steps=2,
        batch_size=4,
    )


@pytest.fixture(scope="module")
def found(config):
    same = [
        arm.name for arm in STUDY.arms if arm.name.endswith("_turned")
    ]  # the same programs
    return run_arms(STUDY, config, leave_out=same)


def test_all_arms_give_their_scores(found):
    check_scores(STUDY, found)
    assert len(found) == 9
    assert all(len(ran.run.clients) == 8 for ran in found.values())


def test_only_the_shared_adapter_travels(config, found):
    floats = sum(
        leaf.size for leaf in jax.tree.leaves(data(config, 0, "final").adapted.delta)
    )
    once = 4 * floats * 8  # of all clients
    for name, ran in found.items():
        rounds = 0 if name.startswith(("local", "shuffled")) else config.rounds
        last = (
            1 if name.startswith("f_") else 0
        )  # everybody downloads the finished adapter
        assert ran.run.bytes == {
            "uplink_bytes": rounds * once,
            "downlink_bytes": (rounds + last) * once,
        }, name


def test_clients_that_disagree_are_the_same_arms_again():
    names = [arm.name for arm in STUDY.arms if arm.name != "shuffled"]
    assert [f"{name}_turned" for name in names[:8]] == names[8:]


def test_arms_that_differ_in_the_mix_share_a_run(found):
    for method in "ft":
        half, instance, alone = (
            found[f"{method}_{kind}"] for kind in ("half", "instance", "alone")
        )
        assert half.run.curve == instance.run.curve == alone.run.curve
        assert (half.scores["mix"], alone.scores["mix"]) == (0.5, 1.0)
        assert -0.5 <= instance.scores["mix"] <= 0.5
        assert instance.scores["mix"] not in (0, 0.5)


def test_every_second_client_says_good_for_bad(config):
    found = data(config, 0, "final")
    for k, (one, other) in enumerate(zip(found.clients, found.turned(), strict=True)):
        for arrays, turned in zip(one, other, strict=True):
            expected = 1 - arrays["label"] if k % 2 else arrays["label"]
            np.testing.assert_array_equal(turned["label"], expected)


def test_no_text_is_in_two_places(config):
    final, tuning = (data(config, 0, split).clients for split in ("final", "tuning"))
    parts = [texts(one.train) for one in final] + [texts(*(one.own for one in final))]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(parts, 2))
    assert texts(*(one.others for one in final)) <= parts[-1]
    assert texts(*itertools.chain(*final)).isdisjoint(texts(*itertools.chain(*tuning)))
