"""One run at a time in a folder: of this process, of another one, and after a SIGKILL."""

import signal
import subprocess
import sys

import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm import callbacks
from fedjax_fm.runs import OtherRun, RunFolderError
from fedjax_fm.runs.lock import FolderLock, held

HOLDS = """
import sys, time
from pathlib import Path
from fedjax_fm.runs.lock import FolderLock

lock = FolderLock(Path(sys.argv[1]))
lock.take()
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture
def another(tmp_path):
    """Another process that has the lock of tmp_path."""
    words = [sys.executable, "-c", HOLDS, str(tmp_path)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "taken\n"
    yield child
    child.kill()
    child.communicate()


def test_a_process_that_is_killed_has_given_it_back(another, tmp_path):
    with pytest.raises(RunFolderError, match="another run is at work in"):
        FolderLock(tmp_path).take()
    another.send_signal(signal.SIGKILL)
    another.wait()
    FolderLock(tmp_path).take()


def test_nothing_is_left_behind(tmp_path):
    with held(tmp_path):
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(RunFolderError), held(tmp_path):
            pass
    with held(tmp_path):
        pass


def test_a_file_system_without_locks_is_gone_without(tmp_path, monkeypatch):
    from fedjax_fm.runs import lock

    def unknown(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unknown)
    with held(tmp_path), held(tmp_path):
        pass


def simulator(rate=0.1):
    def loss(w, backbone, batch, key):
        return (batch["x"] - w) ** 2, {}

    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(rate), local_steps=1, batch_size=2)
    people = ffm.Population.from_clients([{"x": np.ones(4, np.float32)}] * 2)
    return ffm.Simulator(algorithm, people, cohort_size=2, devices=1)


ZERO = np.zeros((), np.float32)


def go(folder, one, *more):
    return one.run(one.init(ZERO), 2, callbacks=[*more, callbacks.checkpoint(folder)])


def test_a_second_run_is_refused_while_the_first_is_under_way(tmp_path):
    refusals = []

    def begins_another(round, state, metrics):
        with pytest.raises(RunFolderError, match="another run is at work") as caught:
            go(tmp_path, simulator())
        refusals.append(caught)

    go(tmp_path, simulator(), begins_another)
    assert len(refusals) == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_that_was_refused_keeps_nobody_out(tmp_path):
    """Also while its error, and with it all that it had in hand, is still there."""
    go(tmp_path, simulator())
    with pytest.raises(OtherRun) as caught:
        go(tmp_path, simulator(rate=0.2))
    state, _ = go(tmp_path, simulator())
    assert state.round == 2
    assert caught.value.__traceback__ is not None


def test_a_run_is_refused_beside_another_process(another, tmp_path):
    with pytest.raises(RunFolderError, match="another run is at work"):
        go(tmp_path, simulator())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_study_has_its_folder_to_itself(command, process, tmp_path):
    settings = ("--smoke", "--set", "pause=0.5", "rounds=4")
    first = process("run", "tiny", *settings, "--out", "a")
    while not (tmp_path / "a" / "cells").exists():
        assert first.poll() is None, first.stderr.read()
    said = command("run", "--resume", "a")
    assert said.code == 2
    assert "another run is at work in a" in said.error
    assert len(said.error.splitlines()) == 1
    assert first.wait(120) == 0
