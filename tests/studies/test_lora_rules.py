"""The study on LoRA rules, with a random BERT on made-up sentences of two genres."""

import dataclasses

import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm.datasets import Table
from fedjax_fm.datasets.table import text_column
from fedjax_fm.experiments.gate.tasks import Rows
from fedjax_fm.experiments.lora_rules import STUDY, Config, clients, data
from fedjax_fm.experiments.lora_rules.arms import of_fedit, sweep
from fedjax_fm.experiments.lora_rules.rules import RULES, made, ranks_of, settings
from fedjax_fm.experiments.shared.budgets import sent
from fedjax_fm.study.run import Run

# One of each kind of start and of model; the contracts look at every rule.
KEPT = ("fedit", "ffa_lora", "fedsa_lora", "frlora", "slora", "ravan", "fed_sb")
KEPT += ("head", "shuffled", "untrained")
N = 240


@pytest.fixture(scope="module")
def config(tiny_bert):
    config = dataclasses.replace(Config().smoke(), model=str(tiny_bert))
    return dataclasses.replace(config, clients=4, sentences=5, judging=3, public=6)


@pytest.fixture(autouse=True, scope="module")
def made_up():
    columns = {name: np.empty(N, object) for name in ("tokens", "labels")}
    for k in range(N):
        columns["tokens"][k] = (("good", "bad", "fine", "poor")[k % 4], "movie", str(k))
        columns["labels"][k] = (k % 2, 1, 0)
    names = [f"c{'ab'[k // 5 % 2]}{k // 5:02}" for k in range(N)]
    columns["document"] = text_column(names)
    rows = Rows(
        table=Table(columns, {}),
        classes=2,
        train=np.arange(200),
        validation=np.arange(200, 220),
        test=np.arange(220, N),
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(clients, "read", lambda name: rows)
    yield rows
    patch.undo()


@pytest.fixture(scope="module")
def found(config, made_up):
    left = [arm.name for arm in STUDY.arms if arm.name not in KEPT]
    return run_arms(STUDY, config, leave_out=left)


def run_of(config, name="fedit", split="final", **hyper):
    dealt = data(config, 0, split)
    return Run(name, config, 0, split, hyper, lambda: dealt)


def test_arms_give_their_scores(found, config):
    check_scores(STUDY, found)
    assert len(found["fedsa_lora"].run.clients) == config.clients


def test_fedit_has_sent_its_own_bytes_at_the_end(found, config):
    """The cohort is everybody, so that the budget is met to the byte."""
    ran = found["fedit"]
    assert sum(ran.run.bytes.values()) == of_fedit(run_of(config))
    assert ran.scores["at_bytes"] == pytest.approx(ran.scores["accuracy"])
    rest = found["ffa_lora"].run
    assert sent(rest.curve[-1]) < of_fedit(run_of(config))


def test_fed_sb_pays_for_its_directions(found, config):
    width, ranks = 16, ranks_of(config)
    frozen = 4 * 2 * (width + width) * ranks.sum()  # A and B of query and value
    run = run_of(config)
    made(run, "fed_sb")
    assert run.bytes == {"uplink_bytes": 0, "downlink_bytes": frozen}
    assert found["fed_sb"].run.bytes["downlink_bytes"] > frozen


def test_ranks_and_heads_of_clients(config):
    equal = dataclasses.replace(config, ranks="equal", clients=6)
    mixed = dataclasses.replace(equal, ranks="mixed")
    assert ranks_of(equal).tolist() == [8] * 6
    assert ranks_of(mixed).tolist() == [2, 4, 8, 16, 2, 4]
    for name in RULES:
        assert "ranks" not in settings(run_of(equal), name)
    run = run_of(mixed)
    assert settings(run, "ravan")["heads"] == [1, 1, 2, 4, 1, 1]
    assert "ranks" not in settings(run, "frlora")
    assert settings(run, "flora")["ranks"].tolist() == [2, 4, 8, 16, 2, 4]


@pytest.mark.parametrize("name", ["fedit", "fedsa_lora"])
def test_rates_side_by_side_are_those_one_after_the_other(name, config):
    """The accuracies of a sweep, and of a simulation with each of its rates."""
    rates = (1e-3, 0.3)
    config = dataclasses.replace(config, rates=rates, rounds=4)
    swept = sweep(run_of(config, name, "tuning"), name)
    for rate in rates:
        run = run_of(config, name, "tuning", learning_rate=rate)
        ready = made(run, name)
        how = {"backbone": ready.backbone, "cohort_size": config.clients}
        method = ready.algorithm(rate)
        alone = run.simulate(method, run.data.train, ready.delta, **how)
        each = run.score_clients(alone, ready.task, run.data.own, "accuracy")
        assert swept[rate] == pytest.approx(each.mean(), abs=1e-6)


def test_a_rate_at_which_training_breaks_is_no_number(config):
    config = dataclasses.replace(config, rates=(1e-3, 1e30), rounds=3)
    swept = sweep(run_of(config, split="tuning"), "fedit")
    assert np.isfinite(swept[1e-3])
    assert np.isnan(swept[1e30])
    arm, run = STUDY.arm("fedit"), run_of(config, split="tuning", learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="not finite"):
        arm.run(run)


def test_sentences_are_drawn_by_the_mix_and_once():
    random, genres = np.random.default_rng(0), np.repeat([0, 1, 2], [1000, 500, 10])
    rows, mix = np.arange(1510), np.array([0.2, 0.8, 0.0])
    found = clients.drawn(random, rows, genres, mix, 300)
    assert len(np.unique(found)) == 300
    shares = np.bincount(genres[found], minlength=3) / 300
    np.testing.assert_allclose(shares, mix, atol=0.1)
    alone = clients.drawn(random, rows, genres, np.array([0, 0, 1.0]), 12)
    assert np.bincount(genres[alone], minlength=3)[2] == 10  # all that there are


def test_nobody_is_judged_on_a_document_that_trains(config, made_up):
    """Rows are known by their hidden states, which differ by the number in the text."""
    dealt = {split: data(config, 0, split) for split in ("tuning", "final")}
    rows = {}
    for split, one in dealt.items():
        for name in ("train", "own"):
            arrays = getattr(one, name)
            assert len(arrays) == config.clients
            rows[split, name] = {x.tobytes() for a in arrays for x in a["hidden"]}
    sets = list(rows.values())
    for k, one in enumerate(sets):
        assert all(not one & other for other in sets[k + 1 :])
    sizes = [len(one["labels"]) for one in dealt["final"].train]
    assert sizes == [config.sentences] * config.clients
    assert len(rows["final", "train"]) == sum(sizes)  # no sentence has two clients
