"""Does something to a process at a chosen moment of a run, which does not know of it."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

from fedjax_fm.runs import Checkpoints, RunFolder

# What Python tells of files that are opened, renamed or removed.
ON_DISK = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


class Moment(NamedTuple):
    """When a fuse acts, and how.

    Attributes:
      event: "work" (a client's local step, while the compiled round runs), "row" (before
        a row of metrics is written), "half a row", "row written", "disk" (a file of the
        checkpoint is about to be opened, renamed or removed), "saved" or "look" (the
        user's callback).
      round: in which; any, for "work".
      count: at the how manieth event of that kind.
      act: a name in the acts of the session.
    """

    event: str
    round: int
    count: int = 1
    act: str = "kill"


def die() -> None:
    """As `kill -9` from outside: nothing is flushed, nobody is told."""
    os.kill(os.getpid(), signal.SIGKILL)


class Fuse:
    """Acts at the moment, once.

    Args:
      moment: when; None: never.
      act: what is called then.
    """

    def __init__(self, moment: Moment | None, act: Callable[[], object] = die):
        self.moment, self.act, self.seen = moment, act, 0
        self.saving: int | None = None  # the round whose checkpoint is being written

    def wants(self, event: str, round_index: int | None = None) -> bool:
        """Whether this event is the chosen one; counts it."""
        moment = self.moment
        if moment is None or event != moment.event:
            return False
        if round_index not in (None, moment.round):
            return False
        self.seen += 1
        return self.seen == moment.count

    def __call__(self, event: str, round_index: int | None = None) -> None:
        """Acts if this event is the chosen one."""
        if self.wants(event, round_index):
            self.act()


def watch(fuse: Fuse) -> None:
    """Puts the fuse where rows and checkpoints are written, for the rest of the process.

    Args:
      fuse: told of every event.
    """
    append, save = RunFolder.append_metrics, Checkpoints.save

    def append_metrics(self: RunFolder, row: dict) -> None:
        fuse("row", row["round"])
        append(self, row)
        if fuse.wants("half a row", row["round"]):
            path = self.path / "metrics.jsonl"
            os.truncate(path, path.stat().st_size - 20)
            fuse.act()
        fuse("row written", row["round"])

    def watched_save(self: Checkpoints, round_index: int, state: object) -> None:
        fuse.saving = round_index
        save(self, round_index, state)
        fuse.saving = None
        fuse("saved", round_index)

    def audit(event: str, arguments: tuple) -> None:
        if fuse.saving is not None and event in ON_DISK:
            fuse("disk", fuse.saving)

    RunFolder.append_metrics, Checkpoints.save = append_metrics, watched_save
    sys.addaudithook(audit)
