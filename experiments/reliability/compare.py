"""Whether two runs have left the same bytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

FILES = ("metrics.jsonl", "plan.json")


def difference(run: Path, other: Path) -> str:
    """What two folders of runs do not have in common; "" if nothing.

    Args:
      run: with metrics, layout, identity and checkpoints.
      other: likewise.

    Returns:
      The first difference among files, number of the newest checkpoint, and all its
      arrays: server, clients, residuals, sampler, keys.
    """
    for name in FILES:
        if (run / name).read_bytes() != (other / name).read_bytes():
            return f"{name} differs"
    if _identity(run) != _identity(other):
        return "identity.json differs"
    newest, arrays = _newest(run)
    expected_newest, expected = _newest(other)
    if newest != expected_newest:
        return f"the newest checkpoint is of round {newest}, not {expected_newest}"
    if arrays.keys() != expected.keys():
        return f"other arrays: {sorted(arrays.keys() ^ expected.keys())}"
    for name, array in expected.items():
        if arrays[name].tobytes() != array.tobytes():
            return f"the array {name} differs"
    return ""


def _identity(run: Path) -> dict[str, Any]:
    """What makes a run this one, without the commit, which may change under its feet."""
    fields = json.loads((run / "identity.json").read_text(encoding="utf-8"))
    return {name: value for name, value in fields.items() if name != "code"}


def _newest(run: Path) -> tuple[int | None, dict[str, np.ndarray]]:
    """(round, every array) of the newest checkpoint."""
    manager = ocp.CheckpointManager((run / "checkpoint").absolute())
    newest = manager.latest_step()
    how: Any = ocp.args.StandardRestore()
    found = {} if newest is None else manager.restore(newest, args=how)
    manager.close()
    return newest, {name: np.asarray(array) for name, array in found.items()}
