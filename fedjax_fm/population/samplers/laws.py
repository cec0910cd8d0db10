"""Laws: what samplers guarantee, as far as privacy accounting can use it."""

from typing import NamedTuple


class Poisson(NamedTuple):
    """Every client takes part on its own, independently of others and of other rounds.

    Attributes:
      rate: probability that a client takes part in a round.
    """

    rate: float


class WithoutReplacement(NamedTuple):
    """Every set of `cohort_size` clients is as likely, independently of other rounds.

    Attributes:
      n_clients: clients in the population.
      cohort_size: clients a round.
    """

    n_clients: int
    cohort_size: int


class Spaced(NamedTuple):
    """No client takes part too soon again, nor too often.

    Attributes:
      min_separation: rounds between two participations of a client, at least; 1 is no
        limit.
      max_participations: of a client in the whole run; None is no limit.
    """

    min_separation: int
    max_participations: int | None = None
