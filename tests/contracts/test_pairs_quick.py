"""Docs/pairs.md is the table, every method is in it, and a few of its cells hold."""

import pair_runs
import pytest
from pairs import EXCEPTIONS, METHODS, PAGE, PARTS, PEFT, SIBLINGS, Refused, page

from fedjax_fm import algorithms
from fedjax_fm.algorithms import lora_rules

# What is no method by itself.
HELPERS = {"client_weight", "fedsa_delta", "fine_tune", "masked_loss", "nest", "train"}
HELPERS |= {"weighted_mean", "cluster_adapters", "expert_start", "principal_start"}
HELPERS |= {"prunefl_first_stage", "fedtiny_selection", "fada_networks"}
HELPERS |= {"edge_bytes", "graphs"}


def test_the_page_is_the_table():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_method_is_in_the_table():
    names = {*algorithms.__all__, *lora_rules.__all__}
    factories = {name for name in names if name.islower() and name not in HELPERS}
    modules = {"lora_rules", "server_optimizers"}
    assert factories - modules == {*METHODS, *SIBLINGS}


def test_exceptions_are_of_cells_that_there_are():
    assert {method for method, _ in EXCEPTIONS} <= set(METHODS)
    assert {part for _, part in EXCEPTIONS} <= set(PARTS)
    assert len(set(METHODS)) == len(METHODS)


@pytest.mark.parametrize("parts", pair_runs.TOGETHER, ids=" and ".join)
def test_rounds(parts):
    pair_runs.check_round("fedavg", parts)


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("scaffold", "feedback"),
        ("fedpaq", "unbiased"),
        ("fedobd", "down"),
        ("fedkseed", "down"),
        ("docofl", "down"),
        ("ef21", "fixed"),
        ("fedbuff", "poisson"),
        ("fslora", "feedback"),
    ],
)
def test_refusals(method, part):
    pair_runs.check_refusal(method, part)


@pytest.mark.parametrize(
    ("method", "name"), [("flora", "dora"), ("fedit", "ia3"), ("fed_sb", "lora")]
)
def test_refused_families(method, name):
    pair_runs.check_family_refused(method, name)


@pytest.mark.parametrize(
    ("method", "kind"), [("scaffold", "distances"), ("fedit", "coordinates")]
)
def test_robust_rules(method, kind):
    pair_runs.check_robust(method, kind)


def test_families_are_all_there():
    assert set(pair_runs.FAMILIES) == set(PEFT)


def test_a_cell_that_is_wrong_is_seen(monkeypatch):
    """What works is no refusal, and the bytes of another channel are not right."""
    cell = Refused("no such words")
    monkeypatch.setattr(pair_runs, "cell_of", lambda method, part: cell)
    with pytest.raises(AssertionError):
        pair_runs.check_refusal("scaffold", "feedback")
    with pytest.raises(pytest.fail.Exception):
        pair_runs.check_refusal("fedavg", "unbiased")
