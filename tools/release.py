"""Checks a release as people get it: built, looked into, installed and run elsewhere.

python tools/release.py build/release.log                    # all of it
python tools/release.py build/release.log --python 3.12      # one Python alone

What is built is the last commit, in build/release. All that the steps say goes into the
log; the exit status is 0 only if every step went well. docs/long-life.md says what a
release needs besides.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from release_parts import (
    IMPORTS,
    PYTHONS,
    Wheel,
    find_python,
    overdue,
    problems_of,
    to_do,
    version_of,
)

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "release"
# The smallest study that fetches nothing: Shakespeare's plays lie in the wheel.
STUDY = "local_work"
SMALL = ("--smoke", "--set", "embedding=2", "hidden=4", "rounds=2")
PASSED_ON = ("PATH", "LANG", "SYSTEMROOT", "TMPDIR")  # of the caller's environment


class Failed(Exception):
    """A step that did not go well."""


class Log:
    """Steps and all that they say, in a file; a line for each on the screen.

    Args:
      path: of the file.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def say(self, line: str) -> None:
        """Writes a line to both.

        Args:
          line: without its end.
        """
        print(line, flush=True)
        self.write(line + "\n")

    def write(self, text: str) -> None:
        """Writes to the file alone.

        Args:
          text: as it is.
        """
        self._file.write(text)
        self._file.flush()

    def run(
        self, what: str, *command: str | Path, cwd: Path, env: dict[str, str]
    ) -> str:
        """Runs a command, and notes what it said and how long it took.

        Args:
          what: the step.
          *command: its words.
          cwd: where.
          env: its whole environment.

        Returns:
          What it said.

        Raises:
          Failed: its exit status is not 0.
        """
        began = time.monotonic()
        words = [str(word) for word in command]
        self.write(f"$ {' '.join(words)}\n")
        done = subprocess.run(
            words,
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self.write(done.stdout)
        seconds = f"{time.monotonic() - began:.0f} s"
        if done.returncode:
            raise Failed(f"{what}: exit status {done.returncode} after {seconds}")
        self.say(f"ok: {what}, {seconds}")
        return done.stdout


def caller() -> dict[str, str]:
    """The caller's environment without what leads Python to other modules."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}


def exported(log: Log) -> Path:
    """The last commit, unpacked in a folder of its own."""
    source, archive = PLACE / "source", PLACE / "source.tar"
    git = ("git", "archive", "--format=tar", "-o", archive, "HEAD")
    log.run("the last commit", *git, cwd=ROOT, env=caller())
    changed = ("git", "status", "--porcelain", "--untracked-files=no")
    if log.run("changes beside it", *changed, cwd=ROOT, env=caller()).strip():
        log.say("note: files were changed since the last commit; they are not in it")
    with tarfile.open(archive) as opened:
        opened.extractall(source, filter="data")
    return source


def build(log: Log, source: Path) -> Path:
    """Builds the source archive, and from it the wheel.

    Returns:
      The wheel's path.
    """
    tools = PLACE / "tools"
    dist = PLACE / "dist"
    log.run("tools", sys.executable, "-m", "venv", tools, cwd=PLACE, env=caller())
    python = tools / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "build")
    log.run("python -m build is there", *pip, cwd=PLACE, env=caller())
    command = (python, "-m", "build", "--outdir", dist, source)
    log.run("source archive and wheel", *command, cwd=PLACE, env=caller())
    (wheel,) = dist.glob("*.whl")
    return wheel


def look_into(log: Log, source: Path, wheel: Path) -> None:
    """Compares wheel and source archive with what lies in the sources."""
    (archive,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    found = Wheel.opened(wheel)
    problems = problems_of(found, inside, source) + overdue(source)
    for line in problems:
        log.say(f"problem: {line}")
    if problems:
        raise Failed(f"{wheel.name}: {len(problems)} problems")
    kib = wheel.stat().st_size >> 10
    log.say(f"ok: {wheel.name} holds {len(found.names)} files, {kib} KiB")
    for name in sorted(found.names):
        log.write(f"  {name}\n")


def install_and_run(log: Log, version: str, python: Path, wheel: Path) -> None:
    """Installs the wheel into a clean environment, and uses it as people do."""
    place = PLACE / version
    home, here, venv = place / "home", place / "elsewhere", place / "venv"
    for folder in (home, here):
        folder.mkdir(parents=True)
    log.run(f"{version}: clean", python, "-m", "venv", venv, cwd=here, env=caller())
    own = venv / "bin" / "python"
    pip = (own, "-m", "pip", "install", "--no-compile", "--progress-bar=off", wheel)
    log.run(f"{version}: installed", *pip, cwd=here, env=caller())
    clean = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    clean |= {"HOME": str(home), "JAX_PLATFORMS": "cpu"}
    command = venv / "bin" / "fedjax-fm"
    steps = {
        "its version": (command, "--version"),
        "fedjax-fm list": (command, "list"),
        f"fedjax-fm run {STUDY}": (command, "run", STUDY, *SMALL, "--out", "run"),
        "fedjax-fm report": (command, "report", "run"),
        "every public module": (own, "-c", IMPORTS),
    }
    for what, words in steps.items():
        said = log.run(f"{version}: {what}", *words, cwd=here, env=clean)
        expected = {
            "its version": version_of(PLACE / "source"),
            "fedjax-fm list": STUDY,
        }
        if expected.get(what, "") not in said:
            raise Failed(f"{version}: {what}: {expected[what]!r} is not in it")
    for name in ("results.json", "RESULTS.md", "report.html", "format.json"):
        if not (here / "run" / name).is_file():
            raise Failed(f"{version}: the run has left no {name}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("log", type=Path, help="where all that was said goes")
    parser.add_argument("--python", action="append", choices=PYTHONS)
    options = parser.parse_args()
    log = Log(options.log)
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    tried, failed = [], []
    try:
        source = exported(log)
        wheel = build(log, source)
        look_into(log, source, wheel)
    except Failed as error:
        log.say(f"FAILED: {error}")
        sys.exit(1)
    for version in options.python or PYTHONS:
        python = find_python(version)
        if python is None:
            log.say(f"not found: Python {version}, so it was not tried")
            continue
        tried.append(version)
        try:
            install_and_run(log, version, python, wheel)
        except Failed as error:
            log.say(f"FAILED: {error}")
            failed.append(version)
    for line in to_do(source):
        log.say(f"before the tag: {line}")
    log.say(f"tried: {tried}; failed: {failed}")
    sys.exit(bool(failed) or not tried)


if __name__ == "__main__":
    main()
