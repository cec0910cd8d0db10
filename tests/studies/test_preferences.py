"""The studies of preferences and of checked rewards, with a tiny random model."""

import dataclasses
import functools

import numpy as np
import pytest
from study_arms import run_arm

import fedjax_fm as ffm
from fedjax_fm.experiments import preferences, verifiable
from fedjax_fm.study.run import Run

SMALL = {"rank": 2, "seeds": (0, 1), "length": 120}


@pytest.fixture(scope="module")
def config(tiny_llama):
    small = preferences.Config().smoke()
    return dataclasses.replace(small, model=str(tiny_llama), **SMALL)


@pytest.fixture(scope="module")
def asked(tiny_llama):
    few = verifiable.Config().smoke()
    return dataclasses.replace(few, model=str(tiny_llama), **SMALL)


@functools.cache
def dealt(config, split):
    return preferences.STUDY.data(config, 0, split)


def said(data, pairs, row):
    """The two answers of a pair as texts."""
    found = []
    for side in ("chosen", "rejected"):
        labels = pairs[f"{side}_labels"][row]
        ids = labels[(labels != -100) & (labels != data.chat.eos_token_id)]
        found.append(data.chat.tokenizer.decode(ids.tolist()))
    return tuple(found)


def test_nobody_is_on_two_sides(config):
    table = preferences.pairs.table_of("planted")
    names = ("chosen", "rejected", "user")
    rows = list(zip(*(table[name].tolist() for name in names), strict=True))
    users = {}
    for better, worse, user in rows:
        users.setdefault((better, worse), set()).add(user)
    unique = {pair: min(owners) for pair, owners in users.items() if len(owners) == 1}
    sides = []
    for split in ("final", "tuning"):
        data = dealt(config, split)
        parts = [*data.train, data.held_out]
        owners = [
            {
                unique[pair]
                for row in range(len(part["chosen_labels"]))
                if (pair := said(data, part, row)) in unique
            }
            for part in parts
        ]
        assert all(len(own) == 1 for own in owners[:-1])  # a client is a user
        sides += owners
    assert sum(map(len, sides)) == len(set().union(*sides))


def test_the_order_of_drawn_pairs_is_drawn_and_nothing_else(config):
    data = dealt(config, "final")
    turned = 0
    for pairs, drawn in zip(data.train, data.drawn, strict=True):
        for row in range(len(pairs["chosen_labels"])):
            sides = [pairs[f"{s}_labels"][row].tolist() for s in ("chosen", "rejected")]
            other = [drawn[f"{s}_labels"][row].tolist() for s in ("chosen", "rejected")]
            assert other in (sides, sides[::-1])
            turned += other != sides
    assert turned


@pytest.mark.parametrize("arm", [one.name for one in preferences.STUDY.arms])
def test_arms_of_preferences_come_to_an_end(config, arm):
    scores, run = run_arm(preferences.STUDY, config, arm)
    assert 0 <= scores["accuracy"] <= 1
    if arm == "longer":
        assert set(scores) == {"accuracy"}
        assert not run.curve
        return
    assert np.isfinite(scores["kl"])
    assert 0 <= scores["win_rate"] <= 1
    assert 1 <= scores["tokens"] <= config.new_tokens
    assert "mean length" in run.notes["win_rates"][0]
    assert run.bytes["uplink_bytes"] > 0
    assert len(run.clients) == (config.clients if arm == "local" else 1)


def test_the_first_stage_is_the_same_for_all_arms(config):
    shared = {}
    starts = []
    for arm in ("dpo", "sft"):
        run = Run(
            arm, config, 0, "final", {"learning_rate": 1e-3},
            lambda: dealt(config, "final"), shared=shared,
        )  # fmt: skip
        starts.append(preferences.arms.first_stage(run))
        assert run.bytes["uplink_bytes"] > 0  # of its bill, too
    assert starts[0] is starts[1]


def test_the_reference_is_computed_once_and_billed(config):
    data = dealt(config, "final")
    shared, flop = {}, {}
    for arm in ("dpo", "shuffled"):
        run = Run(
            arm, config, 0, "final", {"learning_rate": 1e-3},
            lambda: data, shared=shared,
        )  # fmt: skip
        start = preferences.arms.first_stage(run)
        before = run.counts.prepared_flop
        rows = preferences.arms.referred(run, start, drawn=arm == "shuffled")
        assert preferences.arms.referred(run, start, drawn=arm == "shuffled") is rows
        flop[arm] = (run.counts.prepared_flop - before) / 2
    assert flop["dpo"] == flop["shuffled"] > 0
    task = ffm.preferences.dpo(data.adapted, beta=0.1, reference=start)
    other, _ = task.loss(start, data.adapted.backbone, data.train[0], None)
    task = preferences.arms._dpo(run)
    rows = preferences.arms.referred(run, start)
    found, _ = task.loss(start, data.adapted.backbone, rows[0], None)
    np.testing.assert_allclose(found, other, atol=1e-6)
    np.testing.assert_allclose(found, np.log(2), atol=1e-6)


@pytest.mark.parametrize("arm", [one.name for one in verifiable.STUDY.arms])
def test_arms_of_verifiable_come_to_an_end(asked, arm):
    scores, run = run_arm(verifiable.STUDY, asked, arm)
    assert 0 <= scores["accuracy"] <= 1 - scores["unparsable"] + 1e-9
    if arm != "start":
        assert run.notes["answer_tokens"] > 0
    if arm in ("grpo", "other", "length"):
        assert len(run.notes["equal_rewards"]) == asked.rounds


def test_the_small_model_reads_all_words_and_learns():
    few = dataclasses.replace(verifiable.Config().smoke(), first_rounds=4, first=16)
    data = verifiable.STUDY.data(few, 0, "final")
    for text in data.test["prompt"]:
        ids = verifiable.questions.prompt_of(data.chat, str(text))
        assert data.chat.pad_token_id not in ids  # what stands for unknown words
        assert len(ids) <= few.length
    run = Run("grpo", few, 0, "final", {"learning_rate": 1e-3}, lambda: data)
    start = verifiable.arms.first_rounds(run)
    task = ffm.tasks.language_modeling(data.adapted)
    before, after = (
        np.mean(task.loss(delta, data.adapted.backbone, data.first[0], None)[0])
        for delta in (data.adapted.delta, start)
    )
    assert after < 0.7 * before


def test_questions_of_tuning_tests_and_clients_differ(asked):
    final, tuning = (
        verifiable.STUDY.data(asked, 0, split) for split in ("final", "tuning")
    )
    asked_of = [set(data.test["prompt"]) for data in (final, tuning)]
    assert not asked_of[0] & asked_of[1]
    rows = [
        row.tobytes()
        for data in (final, tuning)
        for part in (*data.own,)
        for row in part["input_ids"]
    ]
    assert len(set(rows)) == len(rows)
    for part, said in zip(final.own, final.shown, strict=True):
        for ids, labels in zip(part["answer_ids"], said["labels"], strict=True):
            answer, trained = ids[ids != -100], labels[labels != -100]
            np.testing.assert_array_equal(answer, trained[: len(answer)])
