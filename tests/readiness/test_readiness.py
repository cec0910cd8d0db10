"""The readiness page: its data, that bad data are refused by name, and that it is what they say."""

import ast
import datetime
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedjax_fm.experiments.readiness import __main__ as command
from fedjax_fm.experiments.readiness import ours, page
from fedjax_fm.experiments.readiness.cells import (
    FEATURES,
    FOLDER,
    ORDER,
    VERDICTS,
    framework,
    frameworks,
)

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "readiness.md"
PLACES = "".join(f"<!-- {n} --><!-- end of {n} -->" for n in command.PARTS)


def part(name):
    text = PAGE.read_text(encoding="utf-8")
    return text.partition(f"<!-- {name} -->")[2].partition("<!-- end of")[0].strip()


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# The data


def test_every_framework_has_every_feature():
    found = frameworks()
    assert len(found) == len(ORDER) == 13
    assert len(FEATURES) == 14
    for one in found:
        assert list(one.cells) == list(FEATURES), one.name
        assert one.repositories
        for feature, cell in one.cells.items():
            where = f"{one.name}: {feature}"
            assert cell.verdict in VERDICTS, where
            assert cell.date <= datetime.date.today(), where
            if cell.verdict == "part":
                assert cell.note, f"{where}: what is there and what not?"
            for source in cell.source:
                assert "|" not in source, where


def test_files_are_of_the_frameworks_own_repositories():
    for one in frameworks():
        owners = {name.partition("/")[0] for name in one.repositories}
        for feature, cell in one.cells.items():
            for source in cell.source:
                found = re.match(r"https://github\.com/([\w.-]+)/[\w.-]+/blob/", source)
                if found:
                    assert found[1] in owners, f"{one.name}: {feature}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'verdict = "yes"',
            'verdict = "surely"',
            "expected a verdict of .* got 'surely'",
        ),
        ("date = 2026-12-01", 'date = "lately"', "expected the date .* got 'lately'"),
        ("date = 2026-12-01", "", "expected the date it was looked at, got None"),
        (re.compile(r"source = \[.*\]"), "", "expected a source with 'yes', got"),
        (re.compile(r"source = \[.*\]"), 'source = ["seen it"]', "got 'seen it'"),
        (re.compile(r"/blob/\w{40}/"), "/blob/main/", "at a commit .* got 'https://"),
        (
            '[cells."LoRA"]',
            '[cells."LoRa"]',
            "unknown feature 'LoRa'; did you mean 'LoRA'",
        ),
        ('verdict = "yes"', 'verdict = "not looked at"', "expected no source with"),
    ],
)
def test_a_bad_cell_is_refused_by_name(tmp_path, old, new, said):
    text = (FOLDER / "flower.toml").read_text(encoding="utf-8")
    pattern = old if isinstance(old, re.Pattern) else re.compile(re.escape(old))
    changed = pattern.sub(new.replace("\\", r"\\"), text, count=1)
    assert changed != text
    place = tmp_path / "flower.toml"
    place.write_text(changed, encoding="utf-8")
    with pytest.raises(ValueError, match=said) as found:
        framework(place)
    assert "flower.toml: " in str(found.value)
    if "unknown feature" not in said:
        assert "foundation-model training" in str(found.value)


def test_a_place_is_no_source_of_a_yes(tmp_path):
    text = (FOLDER / "flower.toml").read_text(encoding="utf-8")
    changed = text.replace('verdict = "none found"', 'verdict = "yes"', 1)
    place = tmp_path / "flower.toml"
    place.write_text(changed, encoding="utf-8")
    with pytest.raises(ValueError, match=r"adapters: expected a file .* got 'files of"):
        framework(place)


def test_a_missing_feature_or_framework_is_named(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "all")
    place = tmp_path / "all" / "flute.toml"
    text = place.read_text(encoding="utf-8")
    before, _, rest = text.partition('[cells."energy metering"]')
    _, behind, after = rest.partition("[cells.")
    place.write_text(before + behind + after, encoding="utf-8")
    with pytest.raises(ValueError, match=r"flute.toml: expected a cell for energy"):
        frameworks(tmp_path / "all")
    place.unlink()
    with pytest.raises(ValueError, match="look at flute"):
        frameworks(tmp_path / "all")


# Our column


def functions_of(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_named_test_exists():
    own = ours.ours()
    assert list(own) == list(FEATURES)
    named = [one.test for one in own.values() if one.test]
    assert len(set(named)) == len(named) >= 13
    for test in named:
        file, _, function = test.partition("::")
        assert function.partition("[")[0] in functions_of(file), test


def test_a_row_of_ours_without_a_test_says_why(tmp_path):
    text = ours.OURS.read_text(encoding="utf-8")
    place = tmp_path / "ours.toml"
    without = re.sub(r"test = .*test_meter.*", "", text)
    place.write_text(without, encoding="utf-8")
    with pytest.raises(ValueError, match="energy metering: expected a test or why"):
        ours.ours(place)
    place.write_text(text.replace('["LoRA"]', '["lore"]'), encoding="utf-8")
    with pytest.raises(ValueError, match="LoRA, lore"):
        ours.ours(place)


TESTS = """
import pytest
def test_good(): pass
@pytest.mark.parametrize("n", [0, 1])
def test_half(n): assert n
def test_skipped(): pytest.skip("not here")
"""


def test_outcomes_are_those_of_a_session(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_planted.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    names = ["test_good", "test_half", "test_skipped"]
    named = [f"tests/test_planted.py::{name}" for name in names]
    found = ours.outcomes(named, tmp_path)
    assert list(found.values()) == ["passed", "failure", "skipped"]


def test_changes_since_the_commit_are_refused(tmp_path):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    git = ["git", "-C", str(tmp_path), *who]
    file = tmp_path / "page.md"
    file.write_text("a", encoding="utf-8")
    for words in (["init", "-q"], ["add", "page.md"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    assert re.fullmatch("[0-9a-f]{40}", ours.commit(root=tmp_path))
    file.write_text("b", encoding="utf-8")
    with pytest.raises(ValueError, match=r"got \['page.md'\]: commit"):
        ours.commit(root=tmp_path)
    assert ours.commit([file], tmp_path)


def test_no_cell_of_ours_is_yes_unless_its_test_passed():
    own = dict(ours.ours())
    own["energy metering"] = ours.Own(test="", note="nobody has written it")
    tests = [one.test for one in own.values() if one.test]
    outcomes = dict.fromkeys(tests, "passed") | {own["LoRA"].test: "failure"}
    run = ours.Run(outcomes=outcomes, commit="0" * 40, date="2026-12-01")
    cells = {row[0]: row[-1] for row in rows_of(page.matrix(frameworks(), own, run))}
    assert cells["LoRA"] == "**failure**"
    assert cells["adapters"] == "yes"
    assert cells["energy metering"] == "none"
    idle = [row[-1] for row in rows_of(page.matrix(frameworks(), own, None))[1:]]
    assert set(idle) == {"not run", "none"}


# The page


def test_others_columns_are_what_the_command_writes():
    own, found = ours.ours(), frameworks()
    expected = rows_of(page.matrix(found, own, None))
    assert [row[:-1] for row in rows_of(part("matrix"))] == [x[:-1] for x in expected]
    assert part("sources") == page.sources(found).strip()


def test_our_column_names_the_tests_and_the_commit():
    text, own = part("features"), ours.ours()
    head, *rows = rows_of(text)
    assert head[-2:] == ["outcome", "note"]
    assert [row[0] for row in rows] == list(FEATURES)
    assert [row[2].strip("`") for row in rows] == [one.test for one in own.values()]
    was_run = re.search(r"run on 20\d\d-\d\d-\d\d at commit `[0-9a-f]{40}`", text)
    green = [row for row in rows if row[3] == "yes"]
    assert bool(was_run) == bool(green)
    assert [row[3] for row in rows] == [row[-1] for row in rows_of(part("matrix"))[1:]]


def test_the_command_writes_a_page_and_prints_it(tmp_path, capsys):
    place = tmp_path / "page.md"
    place.write_text(PLACES, encoding="utf-8")
    assert command.main([str(place)]) == 0
    assert "| LoRA | yes |" in place.read_text(encoding="utf-8")
    assert command.main([]) == 0
    assert "### FLUTE" in capsys.readouterr().out
    place.write_text("no place", encoding="utf-8")
    with pytest.raises(ValueError, match="has no place for it"):
        command.main([str(place)])
