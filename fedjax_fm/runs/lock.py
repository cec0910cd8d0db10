"""One run at a time works in a folder.

The lock is the system's, on the folder itself: no file is left behind, and a process
that is killed has given it back.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fedjax_fm.runs.errors import RunFolderError
from fedjax_fm.runs.processes import first_does

try:
    import fcntl
except ImportError:  # Windows has no such lock, and runs go without
    fcntl = None


class FolderLock:
    """Keeps every other run out of a folder, of this process or of another one.

    Of several processes with one folder the first takes it, and the others are told
    whether it could. Where the file system has no locks (some that lie in a network),
    none is taken.

    Args:
      folder: that is there.

    Example:
      >>> import tempfile
      >>> place = Path(tempfile.mkdtemp())
      >>> mine = FolderLock(place)
      >>> mine.take()
      >>> FolderLock(place).take()
      Traceback (most recent call last):
      fedjax_fm.runs.errors.RunFolderError: another run is at work in ...
      >>> mine.give_back()
      >>> FolderLock(place).take()
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._descriptor: int | None = None

    def take(self) -> None:
        """Takes the lock, at once or never.

        Raises:
          RunFolderError: another run has it.
        """
        first_does(self._take)

    def _take(self) -> None:
        if fcntl is None:
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RunFolderError(
                f"another run is at work in {self.folder}: wait until it has ended, or "
                "take another folder"
            ) from None
        except OSError:
            os.close(descriptor)
            return
        self._descriptor = descriptor

    def give_back(self) -> None:
        """Lets others in; does nothing if the lock was not taken."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder's lock for the length of a block.

    Args:
      folder: that is there.

    Raises:
      RunFolderError: another run has it.
    """
    lock = FolderLock(folder)
    lock.take()
    try:
        yield
    finally:
        lock.give_back()
