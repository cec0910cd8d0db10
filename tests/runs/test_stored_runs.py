"""Runs that earlier releases wrote are read, reported, and gone on with, for ever.

tests/helpers/stored_runs.py has written them; each folder bears the version of its
format. Numbers agree to 1e-4, as JAX, Python and the processor are others by now.
"""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import stored_runs

from fedjax_fm import cli
from fedjax_fm.callbacks.history import metrics_of
from fedjax_fm.runs import RunFolder, formats
from fedjax_fm.study import command, results

STORED = Path(__file__).parent / "stored"
VERSIONS = sorted(int(path.name) for path in STORED.iterdir())
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(params=VERSIONS)
def stored(request, tmp_path):
    """A copy of all runs of a version."""
    return Path(shutil.copytree(STORED / str(request.param), tmp_path / "stored"))


def expected_rounds(stored):
    """{column: numbers} of four rounds without a stop, by the release that stored them."""
    columns = json.loads((stored / "rounds.json").read_text())
    n = len(columns["loss"])
    version = formats.of_folder(stored / "rounds")
    rows = [
        {"round": i + 1} | {name: column[i] for name, column in columns.items()}
        for i in range(n)
    ]
    rows = [formats.of_file("metrics.jsonl", row, version) for row in rows]
    return metrics_of(rows)


def scores_of(found):
    return {arm: [one["scores"] for one in found.runs(arm)] for arm in found.arms}


def test_there_is_a_run_of_every_earlier_version():
    assert set(range(formats.FOLDER)) <= set(VERSIONS)
    for version in VERSIONS:
        files = (STORED / str(version)).rglob("*")
        assert sum(x.stat().st_size for x in files if x.is_file()) < 200_000


def test_metrics_are_read(stored):
    rows = RunFolder(stored / "rounds").metrics()
    assert [row["round"] for row in rows] == [1, 2]
    expected = expected_rounds(stored)
    for name, column in expected.items():
        np.testing.assert_allclose([row[name] for row in rows], column[:2], **CLOSE)


def test_rounds_go_on_to_the_numbers_of_a_run_without_a_stop(stored, capsys):
    state, metrics = stored_runs.run(stored / "rounds", stored_runs.ROUNDS)
    assert state.round == stored_runs.ROUNDS
    whole, again = stored_runs.run(None, stored_runs.ROUNDS)
    for name, column in expected_rounds(stored).items():
        np.testing.assert_allclose(metrics[name], column, err_msg=name, **CLOSE)
        np.testing.assert_allclose(metrics[name], again[name], err_msg=name, **CLOSE)
    for name in ("w", "b"):
        np.testing.assert_allclose(state.delta[name], whole.delta[name], **CLOSE)
    # The folder is of today's version now, and goes on as such.
    folder = RunFolder(stored / "rounds")
    assert formats.of_folder(folder.path) == formats.FOLDER
    assert (folder.path / formats.FILE).is_file()
    assert len(folder.metrics()) == stored_runs.ROUNDS
    assert stored_runs.run(folder.path, 5)[0].round == 5


def test_the_report_of_a_run_is_made_again(stored):
    cli.main(["report", str(stored / "rounds")])
    page = (stored / "rounds" / "report.html").read_text(encoding="utf-8")
    assert "2 rounds" in page
    last = RunFolder(stored / "rounds").metrics()[-1]
    for column in ("loss", "eval_norm"):
        assert column.replace("_", " ") in page
        assert f"{last[column]:.5g}" in page


def test_the_report_of_a_study_is_made_again(stored, capsys):
    place = stored / "study-done"
    cli.main(["report", str(place)])
    page = (place / "RESULTS.md").read_text(encoding="utf-8")
    found = results.read(RunFolder(place))
    for arm in found.arms:
        rows = [x for x in page.splitlines() if x.startswith(f"| {found.label(arm)} ")]
        assert f" {found.values(arm)[0]:.0f} " in rows[0]
    assert found.label("one") in (place / "report.html").read_text(encoding="utf-8")


def test_a_study_goes_on_to_the_numbers_of_one_without_a_stop(stored, capsys):
    place, before = stored / "study", signal.getsignal(signal.SIGTERM)
    for arm in stored_runs.LEFT:
        assert not (place / "cells" / arm).exists()
    try:
        cli.main(["run", "--resume", str(place)])
    finally:
        signal.signal(signal.SIGTERM, before)
    done = results.read(RunFolder(stored / "study-done"))
    found, expected = scores_of(results.read(RunFolder(place))), scores_of(done)
    assert found.keys() == expected.keys()
    for arm, rows in expected.items():
        for now, then in zip(found[arm], rows, strict=True):
            for name, score in then.items():
                np.testing.assert_allclose(now[name], score, err_msg=arm, **CLOSE)
    assert (place / "report.html").is_file()
    lines = command.compare(RunFolder(stored / "study-done"), RunFolder(place))
    assert "settings that differ: none; seeds in common: [0]" in lines
