"""Formats: newer ones are refused, older ones migrated; a crash on the way loses nothing."""

import json
import os

import numpy as np
import pytest

from fedjax_fm import __version__
from fedjax_fm.runs import (
    CheckpointError,
    Checkpoints,
    OtherRun,
    RunFolder,
    RunFolderError,
    formats,
)
from fedjax_fm.study import cells, results

COLUMNS = {
    "study.json": "seeds",
    "metrics.jsonl": "loss",
    "cells/one/seed-0.json": "hyper",
}


@pytest.fixture
def folder(tmp_path):
    """As a study with a row of metrics."""
    made = RunFolder.create(tmp_path / "run", {"seeds": [1]}, "mine")
    made.write_json("study.json", {"seeds": [1], "added_seeds": []})
    made.append_metrics({"round": 1, "loss": 0.5})
    made.append_metrics({"round": 2, "loss": 0.25})
    made.below("cells/one").write_json("seed-0.json", {"hyper": {}})
    return made


def rename(old, new):
    return lambda value: {new if name == old else name: x for name, x in value.items()}


@pytest.fixture
def later(folder, monkeypatch):
    """The folder as a release finds it that has renamed a field in three files."""
    for name, field in COLUMNS.items():
        path = folder.path / name
        path.write_text(path.read_text().replace(f'"{field}"', f'"{field}_before"'))
    table = {
        "study.json": rename("seeds_before", "seeds"),
        "metrics.jsonl": rename("loss_before", "loss"),
        "cells/*/*.json": rename("hyper_before", "hyper"),
    }
    monkeypatch.setattr(formats, "FOLDER", 2)
    monkeypatch.setitem(formats.FOLDERS, 1, table)
    return folder


def is_of_today(folder):
    assert cells.all_seeds(folder) == [1]
    assert [row["loss"] for row in folder.metrics()] == [0.5, 0.25]
    assert folder.read_json("cells/one/seed-0.json") == {"hyper": {}}
    inner = RunFolder(folder.path).below("cells").below("one")
    assert inner.read_json("seed-0.json") == {"hyper": {}}


def test_every_new_folder_has_its_version(folder, tmp_path):
    expected = {"format": formats.FOLDER, "fedjax_fm": __version__}
    assert json.loads((folder.path / "format.json").read_text()) == expected
    made = RunFolder(tmp_path / "other").made().up_to_date()
    assert json.loads((made.path / "format.json").read_text()) == expected
    assert made.is_empty
    assert not (folder.path / "cells" / "format.json").exists()  # of the whole folder


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: RunFolder.open(folder.path),
        lambda folder: folder.up_to_date(),
        lambda folder: folder.read_json("study.json"),
        lambda folder: folder.metrics(),
        lambda folder: folder.below("cells").read_json("one/seed-0.json"),
        lambda folder: cells.add_seeds(folder, [2]),
    ],
)
def test_a_newer_folder_is_refused(folder, read):
    folder.write_json("format.json", {"format": 7, "fedjax_fm": "3.1"})
    with pytest.raises(RunFolderError) as error:
        read(folder)
    for part in ("3.1", "of format 7", "reads up to 1", __version__, "pip install -U"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "1"}', '{"format": true}', '{"format": -1}']
)
def test_a_damaged_version_is_no_version(folder, text):
    (folder.path / "format.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"format.*is damaged|is damaged.*format"):
        folder.read_json("study.json")


def test_without_a_migration_a_renamed_field_is_missing(later, monkeypatch):
    monkeypatch.setitem(formats.FOLDERS, 1, {})
    with pytest.raises(KeyError, match="seeds"):
        cells.all_seeds(later)
    assert "loss" not in later.metrics()[0]


def test_reading_migrates_and_changes_nothing(later):
    before = {x: x.read_bytes() for x in later.path.rglob("*") if x.is_file()}
    is_of_today(RunFolder.open(later.path))
    assert before == {x: x.read_bytes() for x in later.path.rglob("*") if x.is_file()}


def test_several_versions_at_once(later, monkeypatch):
    monkeypatch.setattr(formats, "FOLDER", 3)
    monkeypatch.setitem(formats.FOLDERS, 2, {"study.json": rename("seeds", "all")})
    assert later.read_json("study.json") == {"all": [1], "added_seeds": []}


def test_a_folder_is_brought_up_once(later):
    cells.add_seeds(later, [2])
    assert json.loads((later.path / "study.json").read_text())["seeds"] == [1]
    assert json.loads((later.path / "format.json").read_text())["format"] == 2
    assert later.up_to_date().read_json("study.json")["added_seeds"] == [2]
    assert not [x for x in later.path.rglob("*") if "format-" in x.name]


@pytest.mark.parametrize("moment", range(9))
def test_a_crash_while_it_is_brought_up(later, monkeypatch, moment):
    """Dies at each of its renames in turn: three new files, a mark, three moves, a mark."""
    move, done = os.replace, []

    def dying(source, target):
        if len(done) == moment:
            raise KeyboardInterrupt
        done.append(target)
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        if moment < 8:
            with pytest.raises(KeyboardInterrupt):
                later.up_to_date()
        else:
            later.up_to_date()
    assert len(done) == moment
    is_of_today(RunFolder.open(later.path))
    is_of_today(later.up_to_date())
    assert json.loads((later.path / "format.json").read_text()) == formats.stamp(2)


def test_a_file_that_no_migration_can_read(later):
    (later.path / "study.json").write_text("[]")
    with pytest.raises(RunFolderError, match=r"study\.json is damaged"):
        later.read_json("study.json")
    with pytest.raises(RunFolderError, match=r"study\.json is damaged"):
        later.up_to_date()


def test_identities_had_the_version_before():
    before = {"format": 1, "settings": {}}
    assert formats.of_file("identity.json", before, 0) == {"settings": {}}
    assert before == {"format": 1, "settings": {}}


STATE = {"w": np.arange(3.0, dtype=np.float32)}


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoint")
    made.save(1, STATE)
    yield made
    made.close()


def test_a_newer_checkpoint_is_refused(checkpoints, monkeypatch):
    monkeypatch.setattr(formats, "CHECKPOINT", 5)
    monkeypatch.setattr(formats, "__version__", "3.1")
    checkpoints.save(2, STATE)
    monkeypatch.undo()
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore_newest(STATE)  # not the older one, in silence
    for part in ("round 2", "3.1", "of format 5", "reads up to 1", "pip install -U"):
        assert part in str(error.value)
    assert checkpoints.latest == 2


def test_an_older_checkpoint_is_migrated(checkpoints, monkeypatch):
    target = {"weights": np.zeros(3, np.float32)}
    with pytest.raises(OtherRun, match="weights"):
        checkpoints.restore(1, target)
    monkeypatch.setattr(formats, "CHECKPOINT", 2)
    monkeypatch.setitem(formats.CHECKPOINTS, 1, rename("['w']", "['weights']"))
    found = checkpoints.restore(1, target)
    np.testing.assert_array_equal(found["weights"], STATE["w"])


def test_results_of_other_versions(folder, monkeypatch):
    raw = {"version": results.VERSION + 1, "scores": []}
    folder.write_json("results.json", raw)
    with pytest.raises(RunFolderError, match=r"of format 2.*up to 1; install a newer"):
        results.read(folder)
    folder.write_json("results.json", {"version": 1, "score": []})
    monkeypatch.setattr(results, "VERSION", 2)
    monkeypatch.setitem(results.MIGRATIONS, 1, rename("score", "scores"))
    assert results.read(folder).raw["scores"] == []
    folder.write_json("results.json", {"scores": []})
    with pytest.raises(RunFolderError, match="is damaged"):
        results.read(folder)
