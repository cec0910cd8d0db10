"""Measured energy of this machine: RAPL where the kernel shows it, or codecarbon.

Where there is neither, nothing is made up: the reading has no joules and says why.
"""

import importlib
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_fm.systems.quantities import JOULES_PER_KWH

POWERCAP = Path("/sys/class/powercap")
NOT_MEASURED = (
    "not measured: no readable counters in /sys/class/powercap, and codecarbon is not "
    "installed"
)


class Reading(NamedTuple):
    """What was measured.

    Attributes:
      joules: of the whole machine's processors, of all that ran on it; None: not
        measured.
      seconds: between beginning and end.
      how: with what, or why not.
    """

    joules: float | None
    seconds: float
    how: str


class Counter(NamedTuple):
    """One counter of RAPL, of a processor's package.

    Attributes:
      path: of its folder.
      most: microjoules at which it begins again at 0.
    """

    path: Path
    most: int

    def read(self) -> int:
        """Microjoules, modulo `most`."""
        return int((self.path / "energy_uj").read_text(encoding="ascii"))

    def since(self, before: int) -> float:
        """Joules since a reading, if it began again at most once.

        Args:
          before: from `read`.
        """
        passed = self.read() - before
        return (passed if passed >= 0 else passed + self.most + 1) / 1e6


def counters(folder: Path = POWERCAP) -> list[Counter]:
    """The processors' packages that RAPL counts, if this process may read them.

    Cores, memory controllers and the like are parts of a package, and not counted again.

    Args:
      folder: of the kernel's counters.

    Returns:
      One for each package; none where there is no RAPL, or not for this user.
    """
    found = []
    for path in sorted(folder.glob("*-rapl:*")):
        if path.name.count(":") > 1:
            continue
        try:
            most = int((path / "max_energy_range_uj").read_text(encoding="ascii"))
            counter = Counter(path, most)
            counter.read()
        except (OSError, ValueError):
            continue
        found.append(counter)
    return found


class Meter:
    """Holds the reading, once the block of `measured` has ended."""

    def __init__(self):
        self._reading: Reading | None = None

    @property
    def reading(self) -> Reading:
        """What was measured.

        Raises:
          RuntimeError: the block has not ended.
        """
        if self._reading is None:
            raise RuntimeError("read the meter after its block has ended")
        return self._reading


@contextmanager
def measured(folder: Path = POWERCAP) -> Iterator[Meter]:
    """Measures a block.

    Args:
      folder: of the kernel's counters.

    Yields:
      A meter, whose `reading` is there after the block.

    Example:
      >>> with measured(Path("/nowhere")) as meter:
      ...     total = sum(range(1000))
      >>> meter.reading.seconds >= 0
      True
    """
    meter, own = Meter(), counters(folder)
    tracker = None if own else _codecarbon()
    before = [counter.read() for counter in own]
    started = time.perf_counter()
    try:
        yield meter
    finally:
        seconds = time.perf_counter() - started
        joules, how = None, NOT_MEASURED
        if own:
            pairs = zip(own, before, strict=True)
            joules = sum(counter.since(first) for counter, first in pairs)
            how = f"RAPL, {len(own)} package{'s' * (len(own) > 1)}, all that ran on it"
        elif tracker is not None:
            tracker.stop()
            energy = tracker.final_emissions_data.energy_consumed
            joules, how = energy * JOULES_PER_KWH, "codecarbon, which may estimate"
        meter._reading = Reading(joules, seconds, how)


def _codecarbon() -> Any:
    """A tracker that runs, without a network; None if the package is not installed."""
    if importlib.util.find_spec("codecarbon") is None:
        return None
    package = importlib.import_module("codecarbon")
    tracker = package.OfflineEmissionsTracker(
        country_iso_code="USA", save_to_file=False, log_level="error"
    )
    tracker.start()
    return tracker
