"""A place where one method's runs are begun, disturbed, gone on with and compared."""

import shutil
from pathlib import Path
from typing import Any

from fedjax_fm.experiments.reliability.compare import difference
from fedjax_fm.experiments.reliability.fuse import Moment
from fedjax_fm.experiments.reliability.outcome import Broke, ends_well
from fedjax_fm.experiments.reliability.server import Ended, Server
from fedjax_fm.experiments.reliability.session import Request

ROUNDS = 4


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
        return Request(
            folder=place, method=self.method, rounds=rounds, moment=moment, **how
        )

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
