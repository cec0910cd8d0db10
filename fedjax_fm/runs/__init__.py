"""What surrounds a run: its folder, progress, checkpoints, provenance and report."""

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
