"""Cohorts' examples from populations larger than memory, read while the round before computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.engine.data import DeviceData
from fedjax_fm.population.population import Population


def take(population: Population, ids: np.ndarray) -> DeviceData:
    """The examples of these clients, one client after the other, as host arrays.

    Rows are padded to the next power of two (repeating nothing: zeros that no offset
    reaches), so that a run over cohorts of changing size compiles a few programs, not
    one a round.
    """
    starts, ends = population.offsets[ids], population.offsets[ids + 1]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    n = int(offsets[-1])
    if n > np.iinfo(np.int32).max:
        raise ValueError(
            f"a cohort's {n} examples do not fit one device array; take a smaller cohort"
        )
    capacity = 1 << max(n - 1, 0).bit_length()
    arrays = {}
    for name, whole in population.arrays.items():
        part = np.zeros((capacity, *whole.shape[1:]), whole.dtype)
        for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
            part[offsets[k] : offsets[k + 1]] = whole[start:end]
        arrays[name] = part
    return DeviceData(arrays, offsets.astype(np.int32))


class Draw(NamedTuple):
    """A round's cohort on the host."""

    ids: np.ndarray  # i32[C]
    n_active: int
    sampler: Any  # state after the draw
    data: (
        DeviceData | None
    )  # of the cohort, on the device; None where the whole population is there


class Prefetch:
    """Draws rounds `first`, `first + 1`, ... by `draw(round, sampler_state) -> Draw`,
    one ahead in a thread.

    A draw depends on the sampler's state and the round's number only, never on what was learned.
    """

    def __init__(self, draw: Any, first: int, last: int, sampler: Any):
        self._draw, self._last = draw, last
        self._pool = ThreadPoolExecutor(1)
        self._coming: Future = self._pool.submit(draw, first, sampler)
        self._next = first

    def take(self) -> Draw:
        """The next round's; starts on the one after it."""
        drawn: Draw = self._coming.result()
        self._next += 1
        if self._next < self._last:
            self._coming = self._pool.submit(self._draw, self._next, drawn.sampler)
        return drawn

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
