"""A run that is killed anywhere, however often, ends as one that nobody disturbed: the
same bytes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from resumable import ROUNDS

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
SIGKILL = -9
KEPT = 2  # checkpoints
WRITES = 16  # files that Orbax opens, renames or removes for one checkpoint


class Sessions:
    """Processes that begin or continue runs below `folder`, each until it is done or killed."""

    def __init__(self, folder: Path, data: str, states: str):
        kept = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_NUM_CPU_DEVICES": "2",
        }
        self.folder = folder
        self._errors = open(folder / "stderr.txt", "w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "resumable.py", str(folder), data, states],
            cwd=HELPERS,
            env=os.environ | kept,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def __call__(
        self, run: str, event: str | None = None, round_index: int = 0, count: int = 1
    ) -> int:
        """Exit code of one session; -9 if it died of the chosen moment."""
        moment = (
            None
            if event is None
            else {"event": event, "round": round_index, "count": count}
        )
        print(
            json.dumps({"run": run, "moment": moment}),
            file=self._process.stdin,
            flush=True,
        )
        answer = self._process.stdout.readline()
        self._errors.seek(0)
        code = json.loads(answer)["code"] if answer else None
        assert code in (0, SIGKILL), self._errors.read()[-3000:]
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate()
        self._errors.close()


def end_of(run: Path) -> tuple[bytes, int, dict[str, np.ndarray]]:
    """(metrics.jsonl, newest round, every array of its checkpoint)."""
    from fedjax_fm.runs.checkpoint import ocp

    manager = ocp.CheckpointManager((run / "checkpoint").absolute())
    step = manager.latest_step()
    arrays = manager.restore(step, args=ocp.args.StandardRestore())
    manager.close()
    return (
        (run / "metrics.jsonl").read_bytes(),
        step,
        {name: np.asarray(array) for name, array in arrays.items()},
    )


def moments():
    """Inside and after every round: at work, around the row of metrics, at the files of
    a checkpoint, while the oldest checkpoint is removed and after that."""
    rows = ("row", "half a row", "row written")
    for number in range(1, ROUNDS + 1):
        yield "work", number, 1 + number % 3
        yield rows[number % len(rows)], number, 1
        for count in (number, number + 9, number + 13):
            yield "disk", number, count
        yield (
            ("disk", number, WRITES + 4 * number)
            if number > KEPT
            else ("saved", number, 1)
        )


@pytest.mark.parametrize(("data", "states"), [("device", "device"), ("host", "host")])
def test_killed_in_and_after_every_round(tmp_path, data, states):
    with Sessions(tmp_path, data, states) as session:
        assert session("unbroken") == 0
        for event, number, count in moments():
            assert session("broken", event, number, count) == SIGKILL, (
                event,
                number,
                count,
            )
        assert session("broken") == 0
        assert session("broken") == 0  # of a run that is done, nothing is done again
    metrics, step, arrays = end_of(tmp_path / "broken")
    expected_metrics, expected_step, expected = end_of(tmp_path / "unbroken")
    assert metrics == expected_metrics
    assert step == expected_step == ROUNDS
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    # All that a run is: without one of these the next rounds would differ.
    for part in (
        "server",
        "clients",
        "uplinks" if states == "device" else "touched",
        "downlinks",
        "sampler",
        "round",
    ):
        assert any(f".{part}" in name for name in arrays), (part, list(arrays))
