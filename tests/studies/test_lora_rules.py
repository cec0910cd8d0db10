"""The study on LoRA rules, with a tiny random model: the budget, who pays for what, and
who sees whose documents.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny_encoder
from study_arms import run_arm

from fedjax_fm import peft, trees
from fedjax_fm.experiments.lora_rules import STUDY, Config
from fedjax_fm.experiments.lora_rules.rules import LORA, RANKS, directions
from fedjax_fm.experiments.shared.sentences import deal, of_split, sentences
from fedjax_fm.study.run import Run

CONFIG = dataclasses.replace(
    Config().smoke(), model="tiny", max_length=6, train=8, test=6, public=16
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    tiny_encoder.install(monkeypatch, hidden_size=16, intermediate_size=24)
    yield
    sentences.cache_clear()


found = functools.partial(run_arm, STUDY, CONFIG)
A_RANK = 2 * (16 + 24)  # numbers of one rank: two matrices, A and B
ALL_RANKS = sum(RANKS) * A_RANK
BUDGET = CONFIG.budget_rounds * 2 * 4 * ALL_RANKS


def test_fedit_spends_the_budget_to_the_byte():
    scores, run = found("fedit")
    assert 0 <= scores["accuracy"] <= 1
    assert sum(run.bytes.values()) == BUDGET
    assert run.curve[-1]["round"] == CONFIG.budget_rounds
    assert len(run.clients) == len(RANKS)


def test_the_curve_of_a_personal_rule_is_that_of_the_clients_own_models():
    scores, run = found("fedsa_lora")
    assert run.curve[-1]["eval_accuracy"] == pytest.approx(scores["accuracy"])
    assert scores["accuracy"] == pytest.approx(np.mean(run.clients))


@pytest.mark.parametrize("name", ["fedsa_lora", "flora", "fed_sb", "head"])
def test_nobody_spends_more(name):
    _, run = found(name)
    assert 0 < sum(run.bytes.values()) <= BUDGET


def test_fed_sb_pays_for_its_directions():
    run = Run("fed_sb", CONFIG, 0, "final", {}, lambda: STUDY.data(CONFIG, 0, "final"))
    directions(run)
    assert run.bytes == {"uplink_bytes": 0, "downlink_bytes": 4 * ALL_RANKS}


def test_all_arms_of_a_seed_start_from_the_same_head_and_adapters():
    data = STUDY.data(CONFIG, 3, "final")
    head = data.model.classifier.kernel[...]
    np.testing.assert_array_equal(
        STUDY.data(CONFIG, 3, "final").model.classifier.kernel[...], head
    )
    assert (STUDY.data(CONFIG, 4, "final").model.classifier.kernel[...] != head).any()
    trained = peft.apply(
        data.model, peft.lora(max(RANKS), **LORA), jax.random.key(3)
    ).delta
    assert trees.size(trained) == 16 * A_RANK


def test_controls_are_arms_and_the_untrained_head_learns_nothing():
    assert {control.arm for control in STUDY.controls} == {
        "head",
        "shuffled",
        "untrained",
    }
    scores, run = found("untrained")
    assert run.bytes == {"uplink_bytes": 0, "downlink_bytes": 0}
    assert 0 <= scores["accuracy"] <= 1
    assert 0 <= found("shuffled")[0]["accuracy"] <= 1


def test_no_document_is_in_two_places():
    table = sentences("tiny", 6)
    rows = {split: of_split(table, split, 0.4) for split in ("tuning", "final")}
    documents = {split: set(table.document[found]) for split, found in rows.items()}
    assert not documents["tuning"] & documents["final"]
    clients = deal(table, rows["final"], 0, train=8, test=6, per_domain=2)
    train, test = (
        np.concatenate([getattr(client, part) for client in clients])
        for part in ("train", "test")
    )
    assert not set(table.document[train]) & set(table.document[test])
    assert len(set(train)) == len(train) == 8 * len(RANKS)
    for client in clients:
        assert (
            set(table.domain[client.train])
            == set(table.domain[client.test])
            == {client.domain}
        )
