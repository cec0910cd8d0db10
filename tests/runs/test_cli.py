"""The command `fedjax-fm` as people type it: what it says, what it leaves, how it refuses."""

import json
import signal
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


def test_a_folder_in_use_and_another_experiments_folder(command):
    assert command("run", "tiny", "--smoke").code == 0
    said = command("run", "tiny", "--smoke")
    assert said.code == 2
    assert "continue it with `fedjax-fm run --resume runs/tiny-0`" in said.error
    said = command("run", "quickstart", "--resume", "runs/tiny-0")
    assert said.code == 2
    assert "runs/tiny-0 is a run of 'tiny', not of 'quickstart'" in said.error


def test_a_client_with_nan_ends_the_run_with_the_rounds_before_it(command, tmp_path):
    said = command("run", "tiny", "--set", "poison=4", "--rounds", "20")
    assert said.code == 2
    assert "client 4 produced NaN or infinity" in said.error
    rows = (tmp_path / "runs" / "tiny-0" / "metrics.jsonl").read_text().splitlines()
    assert f"round {len(rows)}: client 4" in said.error
    saved = [path.name for path in (tmp_path / "runs" / "tiny-0" / "checkpoint").iterdir()] if rows else []
    assert not rows or str(len(rows)) in saved


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
