"""Faults in real processes: the command's small form, its page, and that it can fail."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedjax_fm.experiments.reliability import __main__ as command
from fedjax_fm.experiments.reliability import long, page
from fedjax_fm.experiments.reliability.compare import difference
from fedjax_fm.experiments.reliability.growth import Sample
from fedjax_fm.experiments.reliability.methods import METHODS
from fedjax_fm.experiments.reliability.outcome import (
    Broke,
    Fault,
    Outcome,
    ends_well,
    killed,
    refused,
)
from fedjax_fm.experiments.reliability.server import Ended
from fedjax_fm.runs import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


@pytest.mark.slow
def test_the_small_form_ends_as_it_must(tmp_path, capsys):
    place = tmp_path / "page.md"
    names = ("outcomes", "words", "growth")
    place.write_text("".join(f"<!-- {n} --><!-- end of {n} -->" for n in names))
    assert command.main([str(place), "--small"]) == 0, capsys.readouterr().err
    text = place.read_text(encoding="utf-8")
    tried = [fault for fault in command.FAULTS if not fault.only_first]
    for fault in tried:
        assert f"| {fault.name} | " in text
    assert "same bytes" in text
    assert "| 200 | " in text


# The page


def rows_of(name):
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition(f"<!-- {name} -->")[2].partition("<!-- end of")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_has_every_fault_and_method():
    head, *rows = rows_of("outcomes")
    assert head == ["fault", *METHODS]
    assert [row[0] for row in rows] == [fault.name for fault in command.FAULTS]
    for fault, (name, first, *others) in zip(command.FAULTS, rows, strict=True):
        assert first, name
        assert all(others) != fault.only_first, name
        assert page.FAILED not in (first, *others), name
    assert len(rows_of("growth")) == len(METHODS) * (1 + long.LOOKS)


def test_the_tests_that_the_page_names_are_there():
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 15
    for path, test in named:
        assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), test


# That it can fail


def run_of(place, arrays, row="{}"):
    place.mkdir()
    for name in ("metrics.jsonl", "plan.json", "identity.json"):
        (place / name).write_text(row)
    states = Checkpoints(place / "checkpoint")
    states.save(2, arrays)
    states.close()
    return place


def test_a_difference_is_seen_in_files_rounds_and_arrays(tmp_path):
    ones = {"w": np.ones(3, np.float32), "n": np.int32(2)}
    one = run_of(tmp_path / "one", ones)
    same = run_of(tmp_path / "same", ones)
    assert difference(same, one) == ""
    row = run_of(tmp_path / "row", ones, row="{ }")
    assert difference(row, one) == "metrics.jsonl differs"
    identity = same / "identity.json"
    identity.write_text('{"code": "of another commit"}')
    assert difference(same, one) == ""
    identity.write_text('{"program": "another"}')
    assert difference(same, one) == "identity.json differs"
    identity.write_text("{}")
    nearly = {**ones, "w": np.nextafter(ones["w"], np.float32(2))}
    rounded = run_of(tmp_path / "rounded", nearly)
    assert difference(rounded, one) == "the array ['w'] differs"
    more = run_of(tmp_path / "more", {**ones, "m": np.ones(1)})
    assert difference(more, one) == "other arrays: [\"['m']\"]"
    shutil.move(same / "checkpoint" / "2", same / "checkpoint" / "3")
    assert "the newest checkpoint is of round 3, not 2" in difference(same, one)


def test_endings_are_those_that_were_expected():
    ended = Ended(code=1, error="OtherRun", message="seed: 5 → 6")
    assert refused(ended, "OtherRun", "seed").cell == "`OtherRun`"
    for error, word in (("OtherRun", "rank"), ("RunFolderError", "seed")):
        with pytest.raises(Broke, match=r"ended with 1: OtherRun: seed: 5 → 6"):
            refused(ended, error, word)
    with pytest.raises(Broke):
        ends_well(ended)
    with pytest.raises(Broke):
        killed(ended)
    killed(Ended(code=-9))


FLAT = [
    Sample(round=n, memory=400_000_000, files=6, threads=20, compiled=5, arrays=16)
    for n in range(10)
]


@pytest.mark.parametrize(
    ("field", "each"),
    [
        ("memory", 2_000_000),
        ("files", 1),
        ("threads", 2),
        ("compiled", 1),
        ("arrays", 1),
    ],
)
def test_growth_is_seen(field, each):
    long.check(FLAT)
    leaks = [
        one._replace(**{field: getattr(one, field) + each * one.round}) for one in FLAT
    ]
    with pytest.raises(Broke, match=field):
        long.check(leaks)


def test_what_breaks_is_shown_and_the_command_fails(monkeypatch, capsys):
    def holds(bench):
        return Outcome(f"holds for {bench.method}")

    def breaks(bench):
        raise Broke("metrics.jsonl differs")

    faults = (Fault("planted: holds", holds), Fault("planted: breaks", breaks, True))
    monkeypatch.setattr(command, "FAULTS", faults)
    assert command.main(["--only", "holds"]) == 0
    assert command.main(["--only", "planted"]) == 1
    said = capsys.readouterr()
    assert "| planted: breaks | **FAILED** |  |  |  |" in said.out
    assert "FAILED: FedAvg: planted: breaks: metrics.jsonl differs" in said.err
    with pytest.raises(SystemExit):
        command.main(["--only", "nothing of that name"])
    assert "there are: planted: holds" in capsys.readouterr().err


def test_a_page_that_is_not_there_is_told_before_a_fault_is_tried(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(command, "tried", None)  # would be called
    with pytest.raises(ValueError, match="expected a page to write into"):
        command.main([str(tmp_path / "page.md")])
    (tmp_path / "page.md").write_text("<!-- outcomes --><!-- end of outcomes -->")
    with pytest.raises(ValueError, match="no place for it; write <!-- words -->"):
        command.main([str(tmp_path / "page.md")])
