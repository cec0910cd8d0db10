"""A place where one method's runs are begun, disturbed, gone on with and compared."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_fm.experiments.reliability.compare import difference
from fedjax_fm.experiments.reliability.fuse import Moment
from fedjax_fm.experiments.reliability.server import Ended, Server
from fedjax_fm.experiments.reliability.session import Request

ROUNDS = 4
SAME = "same bytes"


class Broke(Exception):
    """Something else happened than what must."""


class Outcome(NamedTuple):
    """What became of a fault.

    Attributes:
      cell: in a few words, for a table.
      says: what the run itself said of it.
    """

    cell: str
    says: str = ""


class Bench:
    """Runs of one method, each in a folder of its own.

    Args:
      folder: of all of them.
      method: one of `methods.METHODS`.
      small: fewer moments of each kind.
    """

    def __init__(self, folder: Path, method: str, *, small: bool = False):
        self.folder, self.method, self.small = folder, method, small
        folder.mkdir(parents=True, exist_ok=True)
        self._servers: dict[tuple, Server] = {}

    def server(self, **variables: str) -> Server:
        """The server whose environment has these variables.

        Args:
          **variables: beside those of `Server`.
        """
        name = tuple(sorted(variables.items()))
        if name not in self._servers:
            self._servers[name] = Server(self.folder, **variables)
        return self._servers[name]

    def close(self) -> None:
        """Ends all servers."""
        for server in self._servers.values():
            server.close()

    def request(
        self, name: str, rounds: int = ROUNDS, at: Moment | None = None, **how: Any
    ) -> Request:
        """A session on the run of that name.

        Args:
          name: of the run's folder.
          rounds: done in the end.
          at: the moment of the fault; None: nothing is done to the session.
          **how: further fields of `Request`.
        """
        moment = None if at is None else at._asdict()
        place = str(self.folder / name)
        return Request(place, self.method, rounds, moment=moment, **how)

    def run(self, name: str, *args: Any, **how: Any) -> Ended:
        """Runs a session, see `request`."""
        return self.server()(self.request(name, *args, **how))

    def whole(self, rounds: int = ROUNDS) -> Path:
        """The folder of a run of so many rounds that nobody disturbs.

        Args:
          rounds: of it.
        """
        name = f"whole of {rounds}"
        if not (self.folder / name).exists():
            ends_well(self.run(name, rounds))
        return self.folder / name

    def begun(self, name: str, rounds: int = ROUNDS - 1) -> Path:
        """A new folder with a run that has some rounds done.

        Args:
          name: of the folder.
          rounds: done.
        """
        shutil.copytree(self.whole(rounds), self.folder / name, symlinks=True)
        return self.folder / name

    def goes_on(self, name: str, **how: Any) -> Ended:
        """Goes on with a run to its end, which must leave the bytes of an unbroken one.

        Args:
          name: of the run's folder.
          **how: as for `request`.
        """
        ended = ends_well(self.run(name, **how))
        self.is_same(name)
        return ended

    def is_same(self, name: str) -> None:
        """Raises Broke unless a run has left the bytes of an unbroken one.

        Args:
          name: of the run's folder.
        """
        if found := difference(self.folder / name, self.whole()):
            raise Broke(found)


def ends_well(ended: Ended) -> Ended:
    """The ending, or Broke if it is an error."""
    if ended.code:
        raise Broke(f"ended with {ended.code}: {ended.error}: {ended.message}")
    return ended


def refused(ended: Ended, error: str, *words: str) -> Outcome:
    """The outcome of a session that must end with this error.

    Args:
      ended: how it ended.
      error: the class.
      *words: that its message has.

    Raises:
      Broke: it ended otherwise.
    """
    missing = [word for word in words if word not in ended.message]
    if ended.error != error or missing:
        raise Broke(
            f"expected {error} with {words}, it ended with {ended.code}: "
            f"{ended.error}: {ended.message}"
        )
    return Outcome(f"`{error}`", ended.message)


def killed(ended: Ended) -> None:
    """Raises Broke unless a SIGKILL has ended the session."""
    if ended.code != -9:
        raise Broke(f"was not killed: it ended with {ended.code}: {ended.message}")


class Fault(NamedTuple):
    """A row of the table.

    Attributes:
      name: what is done to a run.
      happens: does it, and says what became of it; raises Broke.
      only_first: whether it is done to the first method alone.
      is_long: whether it takes a minute, and is left out of the small form.
    """

    name: str
    happens: Callable[[Bench], Outcome]
    only_first: bool = False
    is_long: bool = False
