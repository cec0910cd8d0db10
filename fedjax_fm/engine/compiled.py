"""Rounds that were compiled ahead of time, and those that no device can hold."""

import re
from typing import Any, NamedTuple

from fedjax_fm.engine.data import DeviceData
from fedjax_fm.engine.parts import Engine
from fedjax_fm.engine.state import RoundState
from fedjax_fm.engine.target import Target
from fedjax_fm.types import Tree

CURES = (
    "what helps: fewer or shorter examples a batch; `block_size=1`; a backbone split by "
    "`model_parallel`, or in few bits (frozen='nf4')"
)
# As libtpu 0.0.42 says it: "the total memory required for HLO temporaries (53.50G)
# exceeds available HBM (15.75G)".
_EXCEEDED = re.compile(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)")


class DoesNotFit(MemoryError):
    """The rounds need more memory than a device has."""


class Compiled(NamedTuple):
    """The rounds as an executable; `fedjax_fm.aot.report` says what is in it.

    Attributes:
      target: for which machines.
      engine: what is fixed for the run, with its layout.
      program: a `jax.stages.Compiled`.
      state: before the first round, by shape.
      backbone: arrays, or shapes with places.
      data: likewise.
      seconds: that tracing, lowering and compiling took.
      memory: bytes that a device may use.
    """

    target: Target
    engine: Engine
    program: Any
    state: RoundState
    backbone: Tree
    data: DeviceData
    seconds: float
    memory: int

    @property
    def needed(self) -> int | None:
        """Bytes on a device while the rounds run; None where the compiler says nothing."""
        found = self.program.memory_analysis()
        return None if found is None else bytes_of_run(found)

    @property
    def fits(self) -> bool:
        """Whether a device may hold that."""
        return self.needed is None or self.needed <= self.memory


def bytes_of_run(found: Any) -> int:
    """Bytes that a program needs on a device while it runs.

    Args:
      found: of `memory_analysis`.
    """
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + found.temp_size_in_bytes + outputs


def does_not_fit(error: Exception, target: Target) -> Exception:
    """The error of a compiler, in words that help where it is about memory.

    Args:
      error: that the compiler raised.
      target: for which it compiled.

    Returns:
      A `DoesNotFit`, or the error as it came.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return error
    found = _EXCEEDED.search(text)
    if found is None:
        return DoesNotFit(
            f"the rounds do not fit a device of {target.name}: "
            f"{text.splitlines()[0]}; {CURES}"
        )
    used, capacity = map(float, found.groups())
    return DoesNotFit(
        f"the rounds need {used:.2f} GiB on a device of {target.name}, which has "
        f"{capacity:.2f} GiB: {used - capacity:.2f} GiB are missing; {CURES}"
    )
