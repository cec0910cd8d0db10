"""What is done to a session at its moment."""

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fedjax_fm.experiments.reliability.fuse import die

NO_MORE = 64  # bytes that a file may have where the disk is to be full
LONGEST = 600  # seconds that a session waits for another one


def act(name: str, folder: Path) -> Callable[[], object]:
    """What a fuse does to its process, or to the folder of its run.

    Args:
      name: "kill", "terminate", "fill disk", "fill rows", "make unwritable", "wait" or
        "fail".
      folder: of the run.
    """

    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def fill_disk() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (NO_MORE, most))

    def fill_rows() -> None:
        rows = folder / "seconds.jsonl"
        rows.rename(folder / "seconds.kept")
        rows.symlink_to("/dev/full")

    def make_unwritable() -> None:
        """Nothing can be made below /proc, by root neither."""
        (folder / "checkpoint").rename(folder / "checkpoint.kept")
        (folder / "checkpoint").symlink_to("/proc/self/task")

    def wait() -> None:
        (folder / "waits").touch()
        end = time.monotonic() + LONGEST
        while (folder / "waits").exists() and time.monotonic() < end:
            time.sleep(0.02)

    def fail() -> None:
        raise KeyError("a column that is not there")

    acts = {
        "kill": die,
        "terminate": terminate,
        "fill disk": fill_disk,
        "fill rows": fill_rows,
        "make unwritable": make_unwritable,
        "wait": wait,
        "fail": fail,
    }
    return acts[name]
