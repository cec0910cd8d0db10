"""Run folders: files are whole or absent, rows are never lost or doubled."""

import errno
import json

import numpy as np
import pytest

from fedjax_fm.runs import RunFolder, RunFolderError


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(
        tmp_path / "run", {"rounds": np.int64(3), "where": tmp_path}, "tiny"
    )


def test_a_new_folder_holds_its_configuration(folder, tmp_path):
    assert RunFolder.open(folder.path).config == {
        "experiment": "tiny",
        "rounds": 3,
        "where": str(tmp_path),
    }
    assert folder.is_run
    assert folder.below("arms/one").path.is_dir()


def test_a_folder_in_use_is_refused_with_the_way_out(folder, tmp_path):
    with pytest.raises(
        RunFolderError,
        match=r"exists: continue it with `fedjax-fm run --resume .*run`, choose another",
    ):
        RunFolder.create(folder.path, {}, "tiny")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="other exists: choose another with --out"):
        RunFolder.create(tmp_path / "other", {}, "tiny")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="file exists"):
        RunFolder.create(tmp_path / "file", {}, "tiny")


def test_a_run_killed_before_it_began_leaves_nothing_in_the_way(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json.part").write_text('{"expe')
    assert RunFolder.create(tmp_path / "run", {}, "tiny").config == {
        "experiment": "tiny"
    }


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(
        RunFolderError, match=r"is not a run folder: it has no config\.json"
    ):
        RunFolder.open(tmp_path)


def test_files_are_replaced_in_one_piece(folder):
    folder.write_json(
        "results.json", {"accuracy": np.float32(0.5), "array": np.arange(3)}
    )
    with pytest.raises(TypeError, match="set does not go into JSON"):
        folder.write_json("results.json", {"accuracy": {1, 2}})
    with pytest.raises(ValueError, match="JSON"):
        folder.write_json("results.json", {"accuracy": float("nan")})
    assert folder.read_json("results.json") == {"accuracy": 0.5, "array": [0, 1, 2]}
    with pytest.raises(RunFolderError, match="missing"):
        folder.read_json("other.json")
    (folder.path / "results.json").write_text('{"accuracy": 0.')
    with pytest.raises(RunFolderError, match=r"results.json is damaged"):
        folder.read_json("results.json")


def test_arrays_come_back_and_damage_is_named(folder):
    folder.write_arrays("found.npz", {"a": np.arange(4)})
    np.testing.assert_array_equal(folder.read_arrays("found.npz")["a"], np.arange(4))
    (folder.path / "found.npz").write_bytes(b"nothing")
    with pytest.raises(RunFolderError, match=r"found.npz is missing or damaged"):
        folder.read_arrays("found.npz")


def rows(*numbers):
    return [{"round": number, "loss": number / 2} for number in numbers]


def test_a_row_that_a_crash_cut_short_does_not_count(folder):
    for row in rows(1, 2, 3):
        folder.append_metrics(row)
    text = (folder.path / "metrics.jsonl").read_text()
    (folder.path / "metrics.jsonl").write_text(text[:-9])
    assert folder.metrics() == rows(1, 2)
    folder.keep_metrics(2)
    assert (folder.path / "metrics.jsonl").read_text() == "".join(
        json.dumps(row) + "\n" for row in rows(1, 2)
    )


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ('{"round": 2, "seco', [1]),
        ('{"round": 2, "seconds": 0.5}', [1, 2]),  # all of it but the end of the line
        ("\x00\x00\x00", [1]),
        ("", [1]),
    ],
)
def test_a_row_behind_one_that_a_crash_cut_short_can_be_read(folder, left, kept):
    folder.append_seconds(1, 0.5)
    with open(folder.path / "seconds.jsonl", "a") as file:
        file.write(left)
    for number in (3, 4):
        folder.append_seconds(number, 0.25)
    assert list(folder.seconds()) == [*kept, 3, 4]


def test_rows_after_the_checkpoint_are_cut_and_missing_ones_are_told(folder):
    for row in rows(1, 2, 3):
        folder.append_metrics(row)
    folder.keep_metrics(2)
    assert folder.metrics() == rows(1, 2)
    with pytest.raises(
        RunFolderError, match=r"is of round 3, but metrics.jsonl lacks that round"
    ):
        folder.keep_metrics(3)


def test_damage_in_the_middle_names_the_line(folder):
    (folder.path / "metrics.jsonl").write_text('{"round": 1}\n{"rou\n{"round": 3}\n')
    with pytest.raises(RunFolderError, match=r"metrics.jsonl, line 2, is damaged"):
        folder.metrics()


def test_seconds_are_those_of_the_last_time(folder):
    for number, seconds in ((1, 0.5), (2, 0.25), (2, 0.125)):
        folder.append_seconds(number, seconds)
    assert folder.seconds() == {1: 0.5, 2: 0.125}


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


WRITES = {
    "write_text": lambda folder: folder.write_text("report.html", "text"),
    "write_json": lambda folder: folder.write_json("results.json", {}),
    "write_arrays": lambda folder: folder.write_arrays("found.npz", {"a": np.ones(3)}),
    "below": lambda folder: folder.below("arms"),
    "append_metrics": lambda folder: folder.append_metrics({"round": 1}),
    "append_seconds": lambda folder: folder.append_seconds(1, 0.5),
    "create": lambda folder: RunFolder.create(
        folder.path / "inner" / "most", {}, "tiny"
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_names_the_file_and_leaves_no_half_of_it(folder, monkeypatch, name):
    before = sorted(folder.path.rglob("*"))
    with monkeypatch.context() as patched:
        for place in (
            "os.replace",
            "pathlib.Path.mkdir" if name == "below" else "os.replace",
        ):
            patched.setattr(place, full)
        if name.startswith("append"):
            patched.setattr("builtins.open", full)
        with pytest.raises(RunFolderError, match=str(folder.path)) as raised:
            WRITES[name](folder)
    assert "space" in str(raised.value)
    assert sorted(folder.path.rglob("*")) == before


def test_a_folder_whose_first_file_is_refused_is_not_left_behind(tmp_path):
    with pytest.raises(TypeError, match="set does not go into JSON"):
        RunFolder.create(tmp_path / "a" / "run", {"names": {1, 2}}, "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_preparations_only_is_empty(folder):
    folder.write_json("provenance.json", {"data": 1})
    folder.write_text("metrics.jsonl", "")
    folder.below("checkpoint")
    assert folder.is_empty
    folder.below("arms").write_json("one.json", {})
    assert not folder.is_empty
