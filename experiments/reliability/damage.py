"""Folders in which something was changed between two sessions."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from fedjax_fm.experiments.reliability.bench import ROUNDS, Bench
from fedjax_fm.experiments.reliability.outcome import (
    SAME,
    Broke,
    Fault,
    Outcome,
    refused,
)

NEWEST = ROUNDS - 1


def arrays_of(step: Path) -> Path:
    """The largest file of data that is read from a checkpoint.

    Args:
      step: its folder.
    """
    files = (step / "default" / "d").iterdir()
    return max(files, key=lambda path: path.stat().st_size)


def flip(step: Path) -> None:
    """Changes one bit in the middle of a checkpoint's arrays.

    Args:
      step: its folder.
    """
    path = arrays_of(step)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(step: Path) -> None:
    path = arrays_of(step)
    os.truncate(path, path.stat().st_size - 20)


def _without_arrays(step: Path) -> None:
    arrays_of(step).unlink()


def _without_manifest(step: Path) -> None:
    (step / "default" / "manifest.ocdbt").unlink()


def _damaged(name: str, damage: Callable[[Path], None]) -> Callable[[Bench], Outcome]:
    """A run whose newest checkpoint is damaged."""

    def happens(bench: Bench) -> Outcome:
        run = bench.begun(name)
        damage(run / "checkpoint" / str(NEWEST))
        ended = bench.goes_on(name)
        if f"going on from round {NEWEST - 1}" not in ended.said:
            raise Broke(f"no word of the damage: {ended.said!r}")
        return Outcome(f"a round back with a warning, {SAME}", ended.said)

    return happens


def _twice(bench: Bench) -> Outcome:
    """The checkpoint of a round that was damaged, done again, and damaged again."""
    run = bench.begun("twice")
    for _ in range(2):
        flip(run / "checkpoint" / str(NEWEST))
        ended = bench.run("twice", NEWEST)
        if ended.code:
            raise Broke(ended.message)
    bench.goes_on("twice")
    kept = sorted(path.name for path in run.glob("damaged-*"))
    return Outcome(f"both set aside, {SAME}", f"beside the checkpoints: {kept}")


def _all(bench: Bench) -> Outcome:
    run = bench.begun("all")
    for step in (run / "checkpoint").iterdir():
        flip(step)
    ended = bench.run("all")
    return refused(ended, "DamagedCheckpoint", "no checkpoint in", "is whole")


def _newer(bench: Bench) -> Outcome:
    run = bench.begun("newer")
    mark = {"format": 2, "fedjax_fm": "9.0.0"}
    (run / "format.json").write_text(json.dumps(mark), encoding="utf-8")
    return refused(bench.run("newer"), "RunFolderError", "newer fedjax_fm (9.0.0)")


def _torn(bench: Bench) -> Outcome:
    """Half a row is all that the last write of a killed process has left."""
    run = bench.begun("torn")
    for name in ("metrics.jsonl", "seconds.jsonl"):
        with open(run / name, "a", encoding="utf-8") as file:
            file.write('{"round": 4, "lo')
    bench.goes_on("torn")
    rows = (run / "seconds.jsonl").read_text(encoding="utf-8").splitlines()
    rounds = [json.loads(row)["round"] for row in rows]
    if rounds != list(range(1, ROUNDS + 1)):
        raise Broke(f"seconds.jsonl has the rounds {rounds}")
    return Outcome(f"left out, {SAME}")


FAULTS = (
    Fault("newest checkpoint: a file cut short", _damaged("cut", _cut)),
    Fault("newest checkpoint: one bit flipped", _damaged("flipped", flip)),
    Fault("newest checkpoint: its arrays gone", _damaged("gone", _without_arrays)),
    Fault(
        "newest checkpoint: its manifest gone", _damaged("manifest", _without_manifest)
    ),
    Fault("newest checkpoint: damaged, done again, damaged again", _twice),
    Fault("all checkpoints: one bit flipped", _all),
    Fault("the folder of a newer version", _newer),
    Fault("the last lines of metrics.jsonl and seconds.jsonl cut short", _torn),
)
