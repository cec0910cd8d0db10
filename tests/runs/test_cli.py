"""The command `fedjax-fm` as people type it: what it says, what it leaves, how it refuses."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from commands import start_command

STUDIES = (
    *(
        "quickstart",
        "generate",
        "docstrings",
        "lora_rules",
        "fedpm",
        "feddf",
        "fedbert",
        "feddpa",
        "personal",
    ),
    *("communication", "optimisers", "local_work"),
    *("domains", "clip", "slora", "prompts", "prompt_backdoor", "peft_table"),
    *("mixed_instructions", "preferences", "speech", "verifiable"),
    *("frozen_formats", "zeroth", "privacy_utility", "gate", "gate_language"),
    "privacy_peft",
)


def test_list_names_every_study(command):
    said = command("list")
    assert said.code == 0
    for name in STUDIES:
        assert name in said.out
    assert "tiny  Does momentum at the server pay?" in said.out


def test_the_package_runs_as_a_module(tmp_path):
    said = subprocess.run(
        [sys.executable, "-m", "fedjax_fm", "list"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    for name in STUDIES:
        assert name in said.stdout


def test_a_study_leaves_its_folder_and_says_where(command, tmp_path):
    said = command(
        "run",
        "tiny",
        "--set",
        "rate=0.2",
        "shuffle=true",
        "width=none",
        "grid=0.02,0.04",
        "rounds=3",
        "seeds=0,1",
    )
    assert said.code == 0, said.error
    folder = tmp_path / "runs" / "tiny"
    assert "tiny in runs/tiny" in said.out
    assert "tuning · FedAvg · rate 0.02" in said.out
    config = json.loads((folder / "config.json").read_text())
    assert (
        config
        | {
            "rate": 0.2,
            "shuffle": True,
            "width": None,
            "rounds": 3,
            "grid": [0.02, 0.04],
        }
        == config
    )
    cell = json.loads((folder / "cells" / "plain" / "seed-1.json").read_text())
    assert [row["round"] for row in cell["curve"]] == [2, 3]
    assert cell["uplink_bytes"] == cell["curve"][-1]["uplink_bytes"]
    pages = [(folder / name).read_bytes() for name in ("report.html", "RESULTS.md")]
    again = command("report", "runs/tiny")
    assert again.code == 0
    assert "FedAvg, momentum against FedAvg: " in again.out
    assert "report: runs/tiny/report.html" in again.out
    assert pages == [
        (folder / name).read_bytes() for name in ("report.html", "RESULTS.md")
    ]


def test_settings_come_from_a_file_and_the_command_line_goes_before_it(
    command, tmp_path
):
    (tmp_path / "mine.toml").write_text("rounds = 3\nseeds = [4, 5]\nrate = 0.1\n")
    assert (
        command(
            "run", "tiny", "--config", "mine.toml", "--set", "rate=0.3", "--out", "a"
        ).code
        == 0
    )
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (config["rounds"], config["seeds"], config["rate"]) == (3, [4, 5], 0.3)


def test_the_grid_alone_and_then_the_rest(command, tmp_path):
    said = command("grid", "tiny", "--smoke", "--set", "grid=0.05,0.1", "--out", "a")
    assert said.code == 0, said.error
    assert "FedAvg: rate 0.1: " in said.out
    assert "<- chosen" in said.out
    assert not (tmp_path / "a" / "results.json").exists()
    assert command("run", "--resume", "a").code == 0
    assert (
        command("run", "tiny", "--smoke", "--set", "grid=0.05,0.1", "--out", "b").code
        == 0
    )
    results = [
        json.loads((tmp_path / name / "results.json").read_text()) for name in "ab"
    ]
    assert results[0]["arms"] == results[1]["arms"]


def test_two_folders_are_compared_seed_by_seed(command):
    for name, rate in (("a", "0.2"), ("b", "0.6")):
        assert (
            command(
                "run", "tiny", "--smoke", "--set", f"rate={rate}", "--out", name
            ).code
            == 0
        )
    said = command("compare", "a", "b")
    assert said.code == 0, said.error
    assert "settings that differ: rate; seeds in common: [0, 1]" in said.out
    assert "FedAvg, momentum: " in said.out


def test_seeds_that_are_added_later_are_flagged(command, tmp_path):
    assert command("run", "tiny", "--smoke", "--out", "a").code == 0
    assert command("run", "--resume", "a", "--add-seeds", "7", "8").code == 0
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert (results["seeds"], results["added_seeds"]) == ([0, 1], [7, 8])
    assert (
        "7, 8 added after their results had been seen"
        in (tmp_path / "a" / "report.html").read_text()
    )
    assert (
        "seed 7 is there already"
        in command("run", "--resume", "a", "--add-seeds", "7").error
    )
    assert (
        "--add-seeds goes with --resume"
        in command("run", "tiny", "--add-seeds", "7", "--out", "c").error
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "tinny"], "unknown study 'tinny'; did you mean 'tiny'?"),
        (["run"], "say which study"),
        (["run", "tiny", "--smoke", "--full"], "--smoke and --full exclude each other"),
        (["run", "tiny", "--set", "rat=0.1"], "unknown setting 'rat'; did you mean 'rate'?"),
        (["run", "tiny", "--set", "rate"], "--set takes key=value, got 'rate'"),
        (["run", "tiny", "--set", "rate=fast"], "rate takes a number, got 'fast'"),
        (["run", "tiny", "--set", "shuffle=maybe"], "shuffle takes true or false, got 'maybe'"),
        (["run", "tiny", "--set", "rounds=0"], "expected rounds >= 1, got rounds=0"),
        (["run", "--resume", "nowhere"], "nowhere is not a run folder: it has no config.json"),
        (["run", "--resume", "nowhere", "--smoke"], "--resume goes on with the study's own settings; leave out --smoke"),
        (["report", "nowhere"], "nowhere has neither results.json, of a study, nor a metrics.jsonl"),
        (["run", "tiny", "--set", "clients=2"], "cohort_size"),
        (["run", "tiny", "--set", "seeds=1,1"], "expected seeds without repetition"),
        (["run", "tiny", "--set", "seeds=1000,1"], "none of them 1000, which tunes"),
        (["run", "tiny", "--config", "nowhere.toml"], "cannot read nowhere.toml"),
        (["compare", "nowhere", "elsewhere"], "nowhere has no results.json: the study is not done"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(command, words, message):
    said = command(*words)
    assert said.code == 2
    assert message in said.error
    assert "Traceback" not in said.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "rate=nan"], "rate takes a finite number, got 'nan'"),
        (["--set", "rate=inf"], "rate takes a finite number, got 'inf'"),
        (["--set", "rate=1", "rate=2"], "--set gives rate twice"),
        (["--set", "rounds=1.5"], "rounds takes a number, got '1.5'"),
        (["--set", "clients=2"], "cohort_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_setting_leaves_no_folder_in_the_way_of_the_right_one(
    command, tmp_path, words, message
):
    said = command("run", "tiny", *words)
    assert said.code == 2
    assert message in said.error
    assert len(said.error.splitlines()) == 1
    assert not (tmp_path / "runs" / "tiny").exists()
    assert command("run", "tiny", "--smoke").code == 0


def test_what_was_computed_before_an_error_stays(command, tmp_path, monkeypatch):
    from fedjax_fm.runs import RunFolder

    def refuse(self, name, value):
        raise ValueError(f"cannot write {name}")

    with monkeypatch.context() as patched:
        original = RunFolder.write_json
        patched.setattr(
            RunFolder,
            "write_json",
            lambda self, name, value: (refuse if name == "results.json" else original)(
                self, name, value
            ),
        )
        assert command("run", "tiny", "--smoke").code == 2
    assert (
        len(list((tmp_path / "runs" / "tiny-smoke" / "cells").rglob("seed-*.json")))
        == 6
    )
    assert command("run", "--resume", "runs/tiny-smoke").code == 0


BAD_CONFIGURATIONS = {
    "{}": 'does not say which "experiment"',
    "[]": 'does not say which "experiment"',
    '"tiny"': 'does not say which "experiment"',
    '{"experiment": 3}': 'does not say which "experiment"',
    "{": "config.json is damaged",
    "": "config.json is damaged",
    b"\xff\xfe\x00": "config.json is damaged",
    '{"experiment": "tinny"}': "unknown study 'tinny'; did you mean 'tiny'?",
    '{"experiment": "tiny", "ratte": 1}': "config.json: unknown setting 'ratte'; did you mean 'rate'?",
    '{"experiment": "tiny", "rate": "fast"}': "config.json: rate='fast' is no number",
    '{"experiment": "tiny", "rounds": true}': "config.json: rounds=True is no whole number",
    '{"experiment": "tiny", "rounds": 2}': "config.json lacks clients, grid",
}


@pytest.mark.parametrize("text", BAD_CONFIGURATIONS, ids=str)
def test_a_folder_that_is_no_study_is_told_in_one_line(command, tmp_path, text):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )
    said = command("run", "--resume", "other")
    assert said.code == 2
    assert len(said.error.splitlines()) == 1
    assert BAD_CONFIGURATIONS[text] in said.error


@pytest.mark.parametrize("version", ["0", "2", '"1"', "null"])
def test_results_of_another_version_are_refused(command, tmp_path, version):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text(f'{{"version": {version}}}')
    said = command("report", "other")
    assert said.code == 2
    assert f"of version {json.loads(version)!r}, expected 1" in said.error


def test_a_report_of_anybodys_run(command, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [
        {"round": r, "loss": 1 / r, "uplink_bytes": 8, "downlink_bytes": 8}
        for r in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    said = command("report", "mine")
    assert said.code == 0, said.error
    assert "<svg" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "out",
    ["afile", "afile/x", "afile/x/y", "/sys/nope", "/proc/nope/x", "a" * 300, "x\0y"],
)
def test_places_where_no_folder_can_be_made(command, tmp_path, out):
    (tmp_path / "afile").write_text("mine")
    said = command("run", "tiny", "--smoke", "--out", out)
    assert said.code == 2
    assert "Traceback" not in said.error
    assert len(said.error.splitlines()) == 1
    assert out.replace("\0", "") in said.error.replace("\0", "")
    assert "--out" in said.error
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]
    assert (tmp_path / "afile").read_text() == "mine"


def test_names_with_brackets_are_not_markup(command, tmp_path):
    said = command("run", "tiny", "--smoke", "--out", "a[bold]b[/nope]")
    assert said.code == 0, said.error
    assert "tiny in a[bold]b[/nope]" in said.out
    assert "neither results.json" in command("report", "a[red]c").error
    assert "a[red]c" in command("report", "a[red]c").error


CONSOLES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "the C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("console", CONSOLES)
def test_a_run_ends_well_on_a_console_that_is_not_utf_8(process, tmp_path, console):
    name = (
        "runs" if "LC_ALL" in CONSOLES[console] else "läufe"
    )  # that locale has no such names of files
    child = process("run", "tiny", "--smoke", "--out", name, **CONSOLES[console])
    out, error = child.communicate(timeout=120)
    assert child.returncode == 0, error
    assert "seed 1" in out
    assert error == ""
    assert json.loads((tmp_path / name / "config.json").read_text())["rounds"] == 2


def test_a_full_disk_is_one_line_and_what_was_saved_goes_on(process, command, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        child = process(
            "run", "tiny", "--smoke", "--set", "pause=0.5", "--out", "disk/run"
        )
        wait_for_cells(disk / "run", 3, child)
        with (
            contextlib.suppress(OSError),
            open(disk / "filler", "wb", buffering=0) as file,
        ):
            while True:
                file.write(bytes(4096))
        _, error = child.communicate(timeout=120)
        assert child.returncode == 2
        assert len(error.splitlines()) == 1, error
        for words in (
            "disk/run",
            "no space is left on the device",
            "safe",
            "ake room",
            "--resume",
        ):
            assert words in error
        (disk / "filler").unlink()
        assert not list(disk.rglob("*.part"))
        said = command("run", "--resume", "disk/run")
        assert said.code == 0, said.error
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_reader_that_has_seen_enough_is_no_error(process):
    child = process("list")
    child.stdout.close()
    assert "Traceback" not in child.stderr.read()


def test_a_folder_in_use_and_another_experiments_folder(command):
    assert command("run", "tiny", "--smoke").code == 0
    said = command("run", "tiny", "--smoke")
    assert said.code == 2
    assert "continue it with `fedjax-fm run --resume runs/tiny-smoke`" in said.error
    said = command("run", "quickstart", "--resume", "runs/tiny-smoke")
    assert said.code == 2
    assert "runs/tiny-smoke is a run of 'tiny', not of 'quickstart'" in said.error


def test_arms_that_diverge_are_findings_and_a_grid_of_nothing_else_is_told(
    command, tmp_path
):
    said = command(
        "run",
        "tiny",
        "--smoke",
        "--set",
        "poison=0",
        "clients=3",
        "grid=0.1,0.2",
        "--out",
        "a",
    )
    assert said.code == 2
    assert "every point of the grid of 'plain' failed" in said.error
    cell = json.loads((tmp_path / "a" / "cells" / "plain" / "tune-0.json").read_text())
    assert "client 0 produced NaN or infinity" in cell["failed"]
    wild = command("run", "tiny", "--smoke", "--set", "grid=0.1,1e20", "--out", "b")
    assert wild.code == 0, wild.error
    assert "failed" in (tmp_path / "b" / "report.html").read_text()


def wait_for_cells(folder, n, child):
    """Until n cells are computed."""
    until = time.monotonic() + 120
    while len(list((folder / "cells").rglob("*.json"))) < n:
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)


LONG = ("run", "tiny", "--smoke", "--set", "pause=0.2", "keep=true", "rounds=4")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a study that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start_command(*LONG, "--out", folder, cwd=folder.parent).wait(120) == 0
    return folder


@pytest.mark.parametrize(
    ("number", "cells"),
    [(signal.SIGINT, 2), (signal.SIGTERM, 4), (signal.SIGKILL, 1), (signal.SIGKILL, 4)],
)
def test_a_signal_and_resume_end_with_the_same_bytes(
    process, tmp_path, whole, number, cells
):
    child = process(*LONG, "--out", "broken")
    wait_for_cells(tmp_path / "broken", cells, child)
    time.sleep(random.Random(cells).uniform(0.0, 0.3))
    child.send_signal(number)
    out, _ = child.communicate(timeout=120)
    assert child.returncode == (-9 if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert "Go on with: fedjax-fm run --resume broken" in out
    assert not (tmp_path / "broken" / "results.json").exists()
    assert process("run", "--resume", "broken").wait(120) == 0
    for name in ("results.json", "report.html", "RESULTS.md"):
        assert (tmp_path / "broken" / name).read_bytes() == (
            whole / name
        ).read_bytes(), name
