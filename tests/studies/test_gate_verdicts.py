"""The table of the gate: verdicts by hand, and the page against the stored results."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedjax_fm.experiments import gate, gate_language
from fedjax_fm.experiments.gate import verdicts

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guides" / "packaged.md"
WIDE = (-0.12, 0.0, 0.12)  # around a mean: an interval of three seeds over 0.29 wide


def results(study, task, values):
    """What results.json would hold: {arm: a value for each seed}."""
    score = study.primary
    arms = {}
    for arm in study.arms:
        runs = [
            {"seed": k, "scores": {score.name: v}}
            for k, v in enumerate(values[arm.name])
        ]
        arms[arm.name] = {"label": arm.title, "runs": runs}
    return {
        "study": "gate" if study is gate.STUDY else "gate_language",
        "scores": [vars(score)],
        "arms": arms,
        "comparisons": [list(pair) for pair in study.comparisons],
        "controls": [vars(control) for control in study.controls],
        "config": {"task": task, "model": gate_language.MODEL},
    }  # fmt: skip


def around(mean, spread=(-0.005, 0.0, 0.005)):
    return [mean + one for one in spread]


@pytest.mark.parametrize(
    ("lora", "full", "shuffled", "passed"),
    [
        (around(0.50), around(0.40), around(0.1), True),
        (around(0.40), around(0.50, (0.005, 0.0, -0.005)), around(0.1), True),
        (around(0.44), around(0.44), around(0.1), False),  # four points
        (around(0.60, WIDE), around(0.60, WIDE), around(0.1), False),  # uncertain
        (around(0.50), around(0.50), around(0.5), False),  # the control does as well
        (around(0.30), around(0.30), around(0.1), False),  # worse
    ],
)
def test_what_passes_in_points(lora, full, shuffled, passed):
    head = around(0.40)
    values = {"head": head, "lora": lora, "full": full, "shuffled": shuffled}
    one = verdicts.judged(results(gate.STUDY, "brown-tags", values))
    assert one.has_passed == passed
    assert (one.kind, one.model) == ("token", "all-MiniLM-L6-v2")
    assert ("passed" if passed else "FAILED") in verdicts.table([one])


@pytest.mark.parametrize(
    ("lora", "passed"), [(2.85, True), (2.95, False), (3.2, False)]
)
def test_what_passes_in_nats(lora, passed):
    values = {"zero_shot": [3.0] * 3, "full": around(3.0), "lora": around(lora)}
    values["shuffled"] = around(4.0)
    one = verdicts.judged(results(gate_language.STUDY, "roles", values))
    assert one.has_passed == passed
    assert one.kind == "generation"


def test_seeds_that_are_too_few_or_failed_pass_nothing():
    values = {"head": [0.1], "lora": [0.9], "full": [0.9], "shuffled": [0.1]}
    assert not verdicts.judged(results(gate.STUDY, "intents", values)).has_passed
    values = {name: [value[0]] * 3 for name, value in values.items()}
    values |= {"lora": [0.9, np.nan, 0.9], "full": [np.nan] * 3}
    assert not verdicts.judged(results(gate.STUDY, "intents", values)).has_passed


def test_the_row_of_a_task():
    values = {"zero_shot": [3.0] * 3, "lora": around(2.5), "full": around(2.9)}
    values["shuffled"] = around(4.0)
    one = verdicts.judged(results(gate_language.STUDY, "roles", values))
    row = verdicts.table([one]).splitlines()[2]
    assert row == (
        "| `roles` | generation | SmolLM2-135M-Instruct | 3.000 ± 0.000 nats "
        "| 2.500 ± 0.012 nats | 2.900 ± 0.012 nats "
        "| -0.500 [-0.512, -0.488] nats | -0.100 [-0.112, -0.088] nats | passed |"
    )
    assert verdicts.table([one]).endswith("Passed: 1 of 1 tasks; kinds: generation.")


def test_another_study_is_refused():
    raw = {"study": "quickstart", "config": {"task": "intents"}}
    with pytest.raises(ValueError, match="expected a task of a gate, got 'intents'"):
        verdicts.judged(raw)


def test_the_page_has_the_table_of_the_stored_results():
    page = PAGE.read_text(encoding="utf-8")
    assert verdicts.written(page, verdicts.table(verdicts.stored())) == page
    with pytest.raises(ValueError, match="<!-- gate -->"):
        verdicts.written("no comment", "a table")


@pytest.mark.parametrize("folder", sorted(verdicts.RESULTS.glob("*")), ids=str)
def test_a_folder_is_of_its_task(folder):
    raw = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert raw["config"]["task"] == folder.name
    assert len(raw["seeds"]) >= 3
    assert not raw["added_seeds"]
    assert (folder / "RESULTS.md").is_file()
