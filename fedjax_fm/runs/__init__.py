"""What surrounds a run: its folder, progress, checkpoints, provenance and report.

Imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_fm.runs.checkpoint import Checkpoints
    from fedjax_fm.runs.errors import (
        CheckpointError,
        DamagedCheckpoint,
        Interrupted,
        OtherRun,
        RunFolderError,
        UsageError,
    )
    from fedjax_fm.runs.folder import RunFolder
    from fedjax_fm.runs.progress import RoundProgress

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedCheckpoint",
    "Interrupted",
    "OtherRun",
    "RoundProgress",
    "RunFolder",
    "RunFolderError",
    "UsageError",
]

_HOME = {
    "CheckpointError": "errors",
    "Checkpoints": "checkpoint",
    "DamagedCheckpoint": "errors",
    "Interrupted": "errors",
    "OtherRun": "errors",
    "RoundProgress": "progress",
    "RunFolder": "folder",
    "RunFolderError": "errors",
    "UsageError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
