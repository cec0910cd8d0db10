"""The joint study of parts and ways to send less, on made-up hidden states."""

import dataclasses
import itertools

import numpy as np
import pytest
from made_up import made_up_states
from small_runs import check_scores, run_arms
from tiny_decoders import LLAMA
from tiny_encoder import BERT

from fedjax_fm import models, systems, trees
from fedjax_fm.experiments.joint import STUDY, Config, clients, page
from fedjax_fm.experiments.joint.arms import costs, of_lora, pair_of, sweep
from fedjax_fm.experiments.joint.clients import Dealt
from fedjax_fm.experiments.joint.front import ARM_NAMES, front
from fedjax_fm.experiments.joint.parts import PARTS, adapted_by
from fedjax_fm.experiments.joint.picture import draw
from fedjax_fm.experiments.joint.ways import MIXED, WAYS, pairs
from fedjax_fm.experiments.lora_rules.rules import TARGETS
from fedjax_fm.experiments.shared.budgets import sent
from fedjax_fm.experiments.shared.token_tail import DecoderTail
from fedjax_fm.experiments.shared.words import TokenTail
from fedjax_fm.study.results import Results
from fedjax_fm.study.run import Run

WIDTH, LENGTH, CLASSES = 24, 7, 5
SIZES = {"rank": 2, "bottleneck": 3, "prompt": 2, "batch_size": 2}
CONFIG = dataclasses.replace(Config().smoke(), **SIZES, target_tags=0.0)
FIELDS = {**BERT, "hidden_size": WIDTH, "intermediate_size": 32}
# One of each way and of each part; the contracts look at every method and channel.
KEPT = ("full_diloco_16", "lora_plain", "lora_sign", "lora_masks", "lora_mixed")
KEPT += ("adapter_bits_4", "bitfit_top_k", "ia3_eden", "prompt_diloco_4", "zero_long")
KEPT += ("untrained",)


def made_up_rows(n, seed, width=WIDTH):
    sizes = {"width": width, "length": LENGTH, "classes": CLASSES}
    return made_up_states(n, seed, **sizes)


@pytest.fixture(scope="module")
def dealt():
    whole = models.from_config(FIELDS, num_labels=CLASSES, pooling="none", seed=0)
    return Dealt(
        model=TokenTail(whole, 1),
        targets=TARGETS,
        trains_head=True,
        train=[made_up_rows(4, seed) for seed in range(CONFIG.clients)],
        own=[made_up_rows(2, 100 + seed) for seed in range(CONFIG.clients)],
        preparation=systems.Preparation(flop=1e9, passes=2.0, model_bytes=10**6),
    )


def run_of(dealt, config=CONFIG, split="final", **hyper):
    return Run("arm", config, 0, split, hyper, lambda: dealt)


@pytest.fixture(scope="module")
def found(dealt):
    study = dataclasses.replace(STUDY, data=lambda config, seed, split: dealt)
    left = [arm.name for arm in STUDY.arms if arm.name not in KEPT]
    return run_arms(study, CONFIG, leave_out=left)


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    assert set(found) == set(KEPT)


def numbers(dealt, part, rank=None):
    return trees.size(adapted_by(run_of(dealt), part, rank).delta)


def test_bytes_are_those_of_the_buffers(found, dealt):
    """Counted by hand: n numbers of 4 bytes; what goes down is never compressed but by masks."""
    rounds, each = CONFIG.steps // 4, CONFIG.clients
    down = 4 * numbers(dealt, "lora") * rounds * each
    plain = found["lora_plain"].run.bytes
    assert plain == {"uplink_bytes": down, "downlink_bytes": down}
    signs = found["lora_sign"].run.bytes
    assert signs["downlink_bytes"] == down
    assert down / 33 < signs["uplink_bytes"] < down / 20
    masks = found["lora_masks"].run.bytes
    assert max(masks.values()) < 0.35 * down
    whole = 4 * numbers(dealt, "full") * rounds * each
    fewer = found["full_diloco_16"].run.bytes
    assert set(fewer.values()) == {whole // 4}


def test_evaluations_alone_send_scalars(found):
    """Eight bytes a step up, and down a sum of each of 4,096 seeds."""
    rounds, sides = CONFIG.steps // 16, found["zero_long"].run.bytes
    assert sides["uplink_bytes"] == 8 * CONFIG.steps * CONFIG.clients
    assert sides["downlink_bytes"] == 4 * 4096 * rounds * CONFIG.clients


def test_the_budget_is_what_lora_sends(found, dealt):
    ran = found["lora_plain"]
    assert of_lora(run_of(dealt)) == sum(ran.run.bytes.values())
    budget = CONFIG.share * of_lora(run_of(dealt))
    within = [row for row in ran.run.curve if sent(row) <= budget]
    assert ran.scores["at_bytes"] == within[-1]["eval_accuracy"]
    begin = found["untrained"].scores["accuracy"]
    assert found["full_diloco_16"].scores["at_bytes"] == begin  # one round is above it


def test_the_target_is_priced_at_the_first_look_that_reaches_it(found, dealt):
    run = found["lora_plain"].run
    assert found["lora_plain"].scores["to_target"] == sent(run.curve[0]) / 1e6
    run.config = dataclasses.replace(CONFIG, target_tags=1.1)
    pair = pair_of(run_of(dealt), "lora", "plain")
    assert "to_target" not in costs(run, pair)


def test_memory_and_joules_are_of_the_run(found, dealt):
    """The rounds hold at least data, frozen and trained numbers; more steps, more joules."""
    run = run_of(dealt)
    frozen = trees.nbytes(adapted_by(run, "lora").backbone)
    data = sum(trees.nbytes(rows) for rows in dealt.train)
    assert found["lora_plain"].scores["memory"] * 1e6 > frozen + data
    joules = {name: ran.scores.get("joules") for name, ran in found.items()}
    assert 0 < joules["zero_long"] < joules["full_diloco_16"]
    less = {name: joules[name] for name in ("lora_sign", "lora_masks")}
    assert max(less.values()) < joules["lora_plain"]


def test_all_arms_take_the_same_steps(dealt):
    for part, way in pairs():
        pair = pair_of(run_of(dealt), part, way)
        assert pair.rounds * WAYS[way].local_steps == CONFIG.steps


def test_pairs():
    found = list(pairs())
    assert len(found) == len(set(found)) == 6 * 8 + 1 + 2
    assert ("lora", "mixed") in found
    assert ("full", "mixed") not in found
    assert [way for part, way in found if part == "zero"] == ["plain", "long"]


def test_the_head_is_trained_beside_a_part_or_not(dealt):
    """16 wide: the head of five classes has 80 numbers, without a bias."""
    tail = DecoderTail(LLAMA, np.arange(CLASSES, dtype=np.int32))
    frozen = dealt._replace(model=tail, targets=clients.TARGETS, trains_head=False)
    whole = numbers(frozen, "full")
    assert numbers(frozen, "head") == 80
    for part in PARTS:
        if part not in ("full", "zero", "head"):
            beside = numbers(frozen._replace(trains_head=True), part)
            assert beside - numbers(frozen, part) == 80
            assert beside < whole
    assert numbers(frozen, "lora", max(MIXED)) == 8 * numbers(frozen, "lora")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora_top_k", "zero_long"])
def test_rates_side_by_side_are_those_one_after_the_other(name, dealt):
    config = dataclasses.replace(CONFIG, rates=(1e-3, 0.1), zero_rates=(1e-4, 1e-2))
    part, way = ARM_NAMES[name]
    swept = sweep(run_of(dealt, config, "tuning"), pair_of(run_of(dealt), part, way))
    assert len(swept) == 2
    for rate, accuracy in swept.items():
        alone = STUDY.arm(name).run(run_of(dealt, config, learning_rate=rate))
        assert accuracy == pytest.approx(alone["accuracy"], abs=1e-6)


def test_people_of_tuning_are_never_those_of_a_seed(monkeypatch):
    said = [[f"{person} says {k}" for k in range(6)] for person in range(40)]
    monkeypatch.setattr(clients, "messages", lambda rows: said)
    monkeypatch.setattr(clients, "pretrained", lambda *how: None)
    monkeypatch.setattr(clients, "frozen_decoder", lambda model: None)
    monkeypatch.setattr(clients, "preparation_of", lambda *how: None)
    monkeypatch.setattr(clients, "DecoderTail", lambda model, words: words)
    monkeypatch.setattr(clients, "words", lambda config, people: set(people))
    monkeypatch.setattr(
        clients,
        "as_read",
        lambda config, texts, words: {"text": np.array(texts[:6])},
    )
    config = dataclasses.replace(CONFIG, task="conversations", sentences=4, judging=2)
    seen = {}
    for split, seed in itertools.product(("tuning", "final"), range(5)):
        found = clients.deal(config, seed, split)
        names = {rows["text"][0].split()[0] for rows in found.train}
        assert len(names) == config.clients
        seen.setdefault(split, set()).update(names)
        assert [len(rows["text"]) for rows in found.train] == [4] * config.clients
        assert [rows["text"][0][-1] for rows in found.own] == ["4"] * config.clients
    assert not seen["tuning"] & seen["final"]
    assert {str(person) for person in found.model} >= seen["tuning"]


def results_of(points):
    """Results of {arm: [(accuracy, megabytes) of each seed]}."""
    arms = {
        name: {
            "label": name,
            "runs": [
                {"seed": k, "scores": {"accuracy": a, "megabytes": b}}
                for k, (a, b) in enumerate(each)
            ],
        }
        for name, each in points.items()
    }
    scores = [vars(score) for score in STUDY.all_scores]
    return Results({"scores": scores, "arms": arms, "comparisons": []})


def test_the_front_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(30):
        drawn = {arm: rng.integers(1, 8, 2) for arm in ARM_NAMES}
        results = results_of({arm: [tuple(map(float, p))] for arm, p in drawn.items()})
        wanted = []
        for arm, (a, b) in drawn.items():
            others = [drawn[other] for other in drawn if other != arm]
            better = [x for x in others if x[0] >= a and x[1] <= b]
            if all(x[0] == a and x[1] == b for x in better):
                wanted.append(arm)
        assert front(results, "megabytes") == wanted


def test_excess_is_the_difference_of_differences():
    """0.1 lost by the whole layer, 0.3 by BitFit: -0.2 in excess."""
    noise = (0.0, 0.001, -0.001)
    levels = {"full_plain": 0.9, "full_sign": 0.8, "bitfit_plain": 0.7}
    levels |= {"bitfit_sign": 0.4, "ia3_plain": 0.7, "ia3_sign": 0.6}
    points = {arm: [(level, 1.0)] * 3 for arm, level in levels.items()}
    points["bitfit_sign"] = [(0.4 + more, 1.0) for more in noise]
    rest = {arm: [(float("nan"), 1.0)] * 3 for arm in ARM_NAMES if arm not in levels}
    found = page.excesses(results_of(points | rest))
    assert set(found) == {("bitfit", "sign"), ("ia3", "sign")}
    assert found["bitfit", "sign"].difference == pytest.approx(-0.2)
    assert "does not add up" in page.verdict(found["bitfit", "sign"])
    assert found["ia3", "sign"].difference == pytest.approx(0.0)
    assert page.verdict(found["ia3", "sign"]) == "no difference seen"


def test_the_picture_has_a_panel_for_each_task():
    points = {arm: [(0.1 * k, 1.0 + k)] for k, arm in enumerate(ARM_NAMES)}
    figure = draw({"tags": results_of(points), "conversations": results_of(points)})
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 7 + len(WAYS) + 1
