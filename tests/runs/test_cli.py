"""The command `fedjax-fm` as people type it: what it says, what it leaves, how it refuses."""

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest
from commands import start_command


def test_list_names_every_experiment(command):
    said = command("list")
    assert said.code == 0
    for name in ("quickstart", "generate", "docstrings", "tiny", "a study of a second"):
        assert name in said.out


def test_a_run_leaves_its_folder_and_says_where(command, tmp_path):
    said = command("run", "tiny", "--set", "rate=0.2", "shuffle=true", "width=none", "--rounds", "3")
    assert said.code == 0, said.error
    folder = tmp_path / "runs" / "tiny-0"
    assert "tiny in runs/tiny-0" in said.out
    assert "trainable parameters: 3" in said.out  # the simulator's summary
    config = json.loads((folder / "config.json").read_text())
    assert config | {"rate": 0.2, "shuffle": True, "width": None, "rounds": 3} == config
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert ["eval_loss" in row for row in rows] == [False, True, True]
    totals = [sum(row["uplink_bytes"] for row in rows[: i + 1]) for i in range(3)]
    assert [row["uplink_bytes_total"] for row in rows] == totals
    assert json.loads((folder / "plan.json").read_text()).keys() == {"n_devices", "block_size", "n_blocks"}
    page = (folder / "report.html").read_text()
    again = command("report", "runs/tiny-0")
    assert again.code == 0
    assert "weights: [" in again.out
    assert "report: runs/tiny-0/report.html" in again.out
    assert (folder / "report.html").read_text() == page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "tinny"], "unknown experiment 'tinny'; did you mean 'tiny'?"),
        (["run"], "say which experiment"),
        (["run", "tiny", "--smoke", "--full"], "--smoke and --full exclude each other"),
        (["run", "tiny", "--set", "rat=0.1"], "unknown setting 'rat'; did you mean 'rate'?"),
        (["run", "tiny", "--set", "rate"], "--set takes key=value, got 'rate'"),
        (["run", "tiny", "--set", "rate=fast"], "rate takes a number, got 'fast'"),
        (["run", "tiny", "--set", "shuffle=maybe"], "shuffle takes true or false, got 'maybe'"),
        (["run", "tiny", "--rounds", "0"], "expected rounds >= 1, got rounds=0"),
        (["run", "--resume", "nowhere"], "nowhere is not a run folder: it has no config.json"),
        (["run", "--resume", "nowhere", "--rounds", "3"], "--resume goes on with the run's own settings; leave out --rounds"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["run", "tiny", "--clients", "2"], "cohort_size"),
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
        (["--rounds", "3", "--set", "rounds=4"], "--rounds and --set rounds=... are the same setting"),
        (["--set", "rounds=1.5"], "rounds takes a number, got '1.5'"),
        (["--clients", "2"], "cohort_size"),
        (["--set", "poison=0", "--clients", "3"], "client 0 produced NaN"),  # in the first round
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_setting_leaves_no_folder_in_the_way_of_the_right_one(command, tmp_path, words, message):
    said = command("run", "tiny", *words)
    assert said.code == 2
    assert message in said.error
    assert len(said.error.splitlines()) == 1
    assert not (tmp_path / "runs" / "tiny-0").exists()
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
            lambda self, name, value: (refuse if name == "results.json" else original)(self, name, value),
        )
        assert command("run", "tiny", "--smoke").code == 2
    assert len((tmp_path / "runs" / "tiny-0" / "metrics.jsonl").read_text().splitlines()) == 2
    assert command("run", "--resume", "runs/tiny-0").code == 0


BAD_CONFIGURATIONS = {
    "{}": 'does not say which "experiment"',
    "[]": 'does not say which "experiment"',
    '"tiny"': 'does not say which "experiment"',
    '{"experiment": 3}': 'does not say which "experiment"',
    "{": "config.json is damaged",
    "": "config.json is damaged",
    b"\xff\xfe\x00": "config.json is damaged",
    '{"experiment": "tinny"}': "unknown experiment 'tinny'; did you mean 'tiny'?",
    '{"experiment": "tiny", "ratte": 1}': "config.json: unknown setting 'ratte'; did you mean 'rate'?",
    '{"experiment": "tiny", "rate": "fast"}': "config.json: rate='fast' is no number",
    '{"experiment": "tiny", "rounds": true}': "config.json: rounds=True is no whole number",
    '{"experiment": "tiny", "rounds": 2}': "config.json lacks clients, rate",
}


@pytest.mark.parametrize("text", BAD_CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("words", [["run", "--resume"], ["report"]], ids=" ".join)
def test_a_folder_that_is_no_run_is_told_in_one_line(command, tmp_path, text, words):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    said = command(*words, "other")
    assert said.code == 2
    assert len(said.error.splitlines()) == 1
    expected = BAD_CONFIGURATIONS[text]
    only_resumed = words == ["report"] and ("config.json:" in expected or "lacks" in expected)
    assert ("results.json is missing" if only_resumed else expected) in said.error


@pytest.mark.parametrize("out", ["afile", "afile/x", "afile/x/y", "/sys/nope", "/proc/nope/x", "a" * 300, "x\0y"])
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
    assert "no config.json" in command("report", "a[red]c").error
    assert "a[red]c" in command("report", "a[red]c").error


CONSOLES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "the C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("console", CONSOLES)
def test_a_run_ends_well_on_a_console_that_is_not_utf_8(process, tmp_path, console):
    name = "runs" if "LC_ALL" in CONSOLES[console] else "läufe"  # that locale has no such names of files
    child = process("run", "tiny", "--smoke", "--out", name, **CONSOLES[console])
    out, error = child.communicate(timeout=120)
    assert child.returncode == 0, error
    assert "rounds to go; compiling" in out
    assert "blocks" in out
    assert error == ""
    assert json.loads((tmp_path / name / "config.json").read_text())["rounds"] == 2


def test_a_full_disk_is_one_line_and_what_was_saved_goes_on(process, command, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        child = process("run", "tiny", "--rounds", "400", "--set", "pause=0.1", "--out", "disk/run")
        wait_for_rows(disk / "run" / "metrics.jsonl", 5, child)
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        _, error = child.communicate(timeout=120)
        assert child.returncode == 2
        assert len(error.splitlines()) == 1, error
        for words in ("disk/run", "no space is left on the device", "safe", "ake room", "--resume"):
            assert words in error
        (disk / "filler").unlink()
        assert not list(disk.rglob("*.part")) + list(disk.rglob("*tmp*"))
        config = disk / "run" / "config.json"
        rows = len((disk / "run" / "metrics.jsonl").read_text().splitlines())
        config.write_text(json.dumps(json.loads(config.read_text()) | {"rounds": rows + 4, "pause": 0.0}))
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
    assert "continue it with `fedjax-fm run --resume runs/tiny-0`" in said.error
    said = command("run", "quickstart", "--resume", "runs/tiny-0")
    assert said.code == 2
    assert "runs/tiny-0 is a run of 'tiny', not of 'quickstart'" in said.error


def test_a_client_with_nan_ends_the_run_with_the_rounds_before_it(command, tmp_path):
    """The three clients of the first round end it before anything is there; the others' runs keep what was done."""
    kept = 0
    for client in range(6):
        out = tmp_path / f"run-{client}"
        said = command("run", "tiny", "--set", f"poison={client}", "--rounds", "20", "--out", out)
        assert said.code == 2
        assert f"client {client} produced NaN or infinity" in said.error
        if out.exists():
            rows = (out / "metrics.jsonl").read_text().splitlines()
            assert f"round {len(rows)}: client {client}" in said.error
            assert str(len(rows)) in [path.name for path in (out / "checkpoint").iterdir()]
            kept += 1
            break
    assert kept


def wait_for_rows(path, n, child):
    """Until metrics.jsonl has n rows."""
    until = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < n:
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)


LONG = ("run", "tiny", "--rounds", "8", "--set", "pause=0.2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start_command(*LONG, "--out", folder, cwd=folder.parent).wait(120) == 0
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_and_resume_end_with_the_same_bytes(process, tmp_path, whole, number):
    child = process(*LONG, "--out", "broken")
    wait_for_rows(tmp_path / "broken" / "metrics.jsonl", 3, child)
    child.send_signal(number)
    out, _ = child.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert child.returncode == -9
    else:
        assert child.returncode == 130
        assert "everything so far is saved. Go on with: fedjax-fm run --resume broken" in out
    assert not (tmp_path / "broken" / "results.json").exists()
    assert process("run", "--resume", "broken").wait(120) == 0
    for name in ("metrics.jsonl", "results.json", "report.html", "plan.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_resumed_run_says_which_checkpoint_was_damaged(command, tmp_path):
    assert command("run", "tiny").code == 0
    folder = tmp_path / "runs" / "tiny-0"
    before = (folder / "metrics.jsonl").read_bytes()
    newest = folder / "checkpoint" / "6"
    arrays = max((file for file in newest.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    arrays.write_bytes(arrays.read_bytes()[:-8])
    said = command("run", "--resume", "runs/tiny-0")
    assert said.code == 0, said.error
    assert "warning: the checkpoint of round 6" in said.out
    assert "going on from round 4" in said.out
    assert (folder / "metrics.jsonl").read_bytes() == before
