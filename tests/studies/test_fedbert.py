"""The study on split pre-training, with a BERT of width 8."""

import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_runs import check_scores, run_arms, texts

from fedjax_fm.experiments.fedbert import STUDY, Config, data
from fedjax_fm.experiments.fedbert.speeches import without_context


@pytest.fixture(scope="module")
def config():
    return Config(
        roles=2,
        length=16,
        vocabulary=300,
        width=8,
        draws=1,
        steps=4,
        tuning_steps=2,
        round_steps=1,
        turn_batch_size=8,
    )


@pytest.fixture(scope="module")
def found(config):
    return run_arms(
        STUDY, config, leave_out=("shuffled", "local_quarter")
    )  # as parallel and local


def test_all_arms_give_their_scores(found):
    check_scores(STUDY, found)
    assert [name for name, ran in found.items() if "on_all_roles" in ran.scores] == [
        "local"
    ]


def test_what_travels_is_what_the_shapes_say(config, found):
    part = 4 * sum(
        leaf.size for leaf in jax.tree.leaves(data(config, 0, "final").delta["client"])
    )
    hidden = config.batch_size * config.length * config.width * 4  # a batch's, at a cut
    mask = (
        found["parallel"].run.bytes["uplink_bytes"] / (config.steps * config.roles)
        - 2 * hidden
    )
    rounds = config.steps // config.round_steps
    mask -= part * rounds / config.steps
    assert mask == config.batch_size * config.length / 8  # a bit a token
    down = config.roles * (config.steps * 2 * hidden + rounds * part)
    assert found["parallel"].run.bytes["downlink_bytes"] == down
    assert found["centralised"].run.curve[-1]["round"] == 1
    assert not any(found["local"].run.bytes.values())


def test_every_arm_reads_as_many_rows(config, found):
    turns = found["in_turn"].run.curve[-1]["round"]
    rows = turns * config.round_steps * config.turn_batch_size
    assert rows == config.steps * config.batch_size * config.roles


def test_shuffled_words_keep_their_places_and_their_numbers(config):
    part = data(config, 0, "final").train[0]
    other = without_context(part, 0)
    np.testing.assert_array_equal(
        np.sort(part["input_ids"], axis=None), np.sort(other["input_ids"], axis=None)
    )
    np.testing.assert_array_equal(part["input_ids"] < 5, other["input_ids"] < 5)
    assert (part["input_ids"] != other["input_ids"]).mean() > 0.5


def test_no_role_is_in_two_places_and_no_speech_is_held_out_twice(config):
    final, tuning = data(config, 0, "final"), data(config, 0, "tuning")

    def long(part):
        return {row for row in texts(part) if np.frombuffer(row, np.int32)[-1] != 0}

    parts = [*final.train, *final.test, *tuning.train, *tuning.test]
    overlap = [len(long(a) & long(b)) for a, b in itertools.combinations(parts, 2)]
    assert (
        sum(overlap) == 0
    )  # of rows that are full: short ones, such as "Ay.", occur often
    other = data(config, 1, "final")
    assert texts(*final.test) != texts(*other.test)
    assert sum(len(part["input_ids"]) for part in (*final.train, *final.test)) == sum(
        len(part["input_ids"]) for part in (*other.train, *other.test)
    )


def test_the_vocabulary_is_the_same_in_every_process():
    code = (
        "from fedjax_fm.experiments.fedbert.speeches import word_pieces\n"
        "texts = ['the quality of mercy is not strained', 'all that glisters is not gold']\n"
        "print(sorted(word_pieces(texts, 60).get_vocab().items()))"
    )
    run = [sys.executable, "-c", code]
    printed = [subprocess.run(run, capture_output=True, text=True) for _ in range(2)]
    assert printed[0].stdout == printed[1].stdout != ""
