"""The study on FedKSeed, with a random BERT and a random llama of two layers."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import check_scores, run_arms, texts

from fedjax_fm.experiments.zeroth import STUDY, Config, data


@pytest.fixture(scope="module")
def config(tiny_bert, tiny_llama):
    return Config(
        encoder=str(tiny_bert),
        decoder=str(tiny_llama),
        max_length=40,
        decoder_length=24,
        per_domain=1,
        train=8,
        test=4,
        roles=4,
        cohort=2,
        rounds=2,
        tuning_rounds=1,
        local_steps=2,
        batch_size=4,
    )


@pytest.fixture(scope="module")
def found(config):
    return run_arms(STUDY, config)


def test_all_arms_give_their_scores(found):
    check_scores(STUDY, found)
    assert len(found) == 5


def test_scalars_travel_up_and_accumulators_down(config, found):
    times = config.rounds * config.cohort
    parameters = sum(
        leaf.size for leaf in jax.tree.leaves(data(config, 0, "final").adapted.delta)
    )
    sent = {name: tuple(ran.run.bytes.values()) for name, ran in found.items()}
    up = times * 8 * config.local_steps
    assert sent["fedkseed"] == sent["confused"] == (up, times * 4 * 4096)
    assert sent["pro"] == (up, 2 * times * 4 * 4096)
    assert sent["fedavg"] == (times * 4 * parameters,) * 2
    assert sent["untrained"] == (0, 0)


def test_other_directions_are_another_run_of_the_same_first_scalars(found):
    ours, control = (found[name].run.curve for name in ("fedkseed", "confused"))
    assert ours[0]["loss"] == control[0]["loss"]
    assert ours[0]["eval_loss"] != control[0]["eval_loss"]


def test_no_text_is_in_two_places(config):
    final, tuning = data(config, 0, "final"), data(config, 0, "tuning")
    assert texts(*final.train).isdisjoint(texts(final.test))
    assert texts(*final.train, final.test).isdisjoint(texts(*tuning.train, tuning.test))


def test_a_decoder_on_roles_of_other_plays(config):
    config = dataclasses.replace(config, text="shakespeare")
    final, tuning = data(config, 0, "final"), data(config, 0, "tuning")
    assert texts(*final.train).isdisjoint(texts(final.test))
    assert texts(*final.train, final.test).isdisjoint(texts(*tuning.train, tuning.test))
    names = [arm.name for arm in STUDY.arms if arm.name != "fedkseed"]
    (ran,) = run_arms(STUDY, config, leave_out=names).values()
    assert np.isfinite(ran.scores["loss"])
    assert "accuracy" not in ran.scores
