"""The command with one experiment more than it is shipped with."""

import contextlib
import io
import subprocess
from typing import NamedTuple

import pytest
from commands import EXPERIMENTS, start_command


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    error: str


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`command("run", "tiny", ...) -> Said`, in this process, in an empty folder."""
    import fedjax_fm.experiments
    from fedjax_fm.cli import main

    monkeypatch.setattr(
        fedjax_fm.experiments,
        "__path__",
        [*fedjax_fm.experiments.__path__, str(EXPERIMENTS)],
    )
    monkeypatch.chdir(tmp_path)

    def say(*words: str) -> Said:
        code, out, error = 0, io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                main([str(word) for word in words])
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        return Said(code, out.getvalue(), error.getvalue())

    return say


@pytest.fixture
def process(tmp_path):
    """`process("run", "tiny", ...) -> Popen`, a process of its own with pipes, in the
    same folder.
    """
    started = []

    def start(*words: str, **variables: str) -> subprocess.Popen:
        started.append(start_command(*words, cwd=tmp_path, **variables))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate()
