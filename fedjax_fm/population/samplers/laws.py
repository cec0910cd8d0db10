"""What samplers promise, as far as privacy accounting can use it."""

from typing import NamedTuple


class Poisson(NamedTuple):
    """Every client takes part with probability `rate`, independently of others and of
    other rounds.
    """

    rate: float


class WithoutReplacement(NamedTuple):
    """Every set of `cohort_size` of `n_clients` clients is equally likely,
    independently of other rounds.
    """

    n_clients: int
    cohort_size: int


class Spaced(NamedTuple):
    """No client takes part twice within fewer than `min_separation` rounds (1.

    No limit), nor more than `max_participations` times (None: no limit).
    """

    min_separation: int
    max_participations: int | None = None
