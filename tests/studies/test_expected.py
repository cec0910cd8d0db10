"""Studies of tuning systems: what is expected stands beside each, and names its arms."""

import importlib
import re
from pathlib import Path

import pytest

EXPERIMENTS = Path(importlib.import_module("fedjax_fm.experiments").__path__[0])
NAMES = (
    *("clip", "domains", "duplicates", "joint", "labeller", "life_cycle"),
    *("mixed_instructions", "peft_table", "preferences", "privacy_peft"),
    *("prompt_backdoor", "prompts", "slora", "speech", "start", "verifiable"),
)
COLUMNS = ("claim", "source", "data here", "baseline", "margin", "seeds", "rule")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_expected_fits_the_study(name):
    study = importlib.import_module(f"fedjax_fm.experiments.{name}").STUDY
    text = (EXPERIMENTS / name / "EXPECTED.md").read_text(encoding="utf-8")
    header = next(line for line in text.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(COLUMNS)
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows
    seeds = ", ".join(map(str, study.config().seeds))
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == len(COLUMNS), row
        assert cells[5] == seeds
    known = {arm.name for arm in study.arms} | {
        score.name for score in study.all_scores
    }
    rules = [row.split("|")[7] for row in rows]
    named = {word for rule in rules for word in re.findall(r"`([a-z_]+)`", rule)}
    assert named - {"shrinking", "verdicts"} <= known, named - known
    compared = {frozenset(pair) for pair in study.comparisons}
    for rule in rules:
        pair = re.search(r"`(\w+)` (?:better|worse) than `(\w+)`", rule)
        if pair:
            assert frozenset(pair.groups()) in compared, rule


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_small_where_it_says_so_and_has_equal_budgets(name):
    study = importlib.import_module(f"fedjax_fm.experiments.{name}").STUDY
    study.check_budgets(study.config())
    study.check_budgets(study.config().smoke())
    assert len(study.config().seeds) >= 3
