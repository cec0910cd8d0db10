"""What surrounds a run: its folder, progress, checkpoints, provenance and report. Imported when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_fm.runs.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint, OtherRun
    from fedjax_fm.runs.experiment import Experiment, UsageError
    from fedjax_fm.runs.folder import RunFolder, RunFolderError
    from fedjax_fm.runs.loop import Interrupted, run_rounds
    from fedjax_fm.runs.progress import RoundProgress

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedCheckpoint",
    "Experiment",
    "Interrupted",
    "OtherRun",
    "RoundProgress",
    "RunFolder",
    "RunFolderError",
    "UsageError",
    "run_rounds",
]

_HOME = {
    "CheckpointError": "errors",
    "Checkpoints": "checkpoint",
    "DamagedCheckpoint": "errors",
    "Experiment": "experiment",
    "Interrupted": "errors",
    "OtherRun": "errors",
    "RoundProgress": "progress",
    "RunFolder": "folder",
    "RunFolderError": "errors",
    "UsageError": "errors",
    "run_rounds": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
