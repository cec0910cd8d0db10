"""Laws and noise in `dp_accounting`'s terms; only here is that package used."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.population.samplers.laws import Poisson, Spaced, WithoutReplacement
from fedjax_fm.privacy.noise import Noise
from fedjax_fm.privacy.sensitivity import sensitivity

LESS = "one client more or less"
ZERO = "one client's contribution there or zero"
REPLACED = "one client's data replaced"
_TOLERANCE = 1e-4  # of a multiplier that is looked for, relative


class Mechanism(NamedTuple):
    """A Gaussian, sampled or not, once a round; a matrix mechanism is one for the whole run."""

    sampling: Any  # Poisson, WithoutReplacement or None
    sensitivity: float  # in clip norms
    whole_run: bool
    relation: str
    words: str

    def event(self, noise_multiplier: float) -> Any:
        """Of one round, or of the whole run, as a `dp_accounting.DpEvent`."""
        dp = _dp_accounting()
        gaussian = dp.GaussianDpEvent(noise_multiplier / self.sensitivity)
        if isinstance(self.sampling, Poisson):
            return dp.PoissonSampledDpEvent(self.sampling.rate, gaussian)
        if isinstance(self.sampling, WithoutReplacement):
            return dp.SampledWithoutReplacementDpEvent(*self.sampling, gaussian)
        return gaussian

    def times(self, rounds: int) -> int:
        """How often the event happens in so many rounds."""
        return 1 if self.whole_run else rounds


def mechanism_of(
    law: Any, noise: Noise, rounds: int, bound: float | None = None
) -> Mechanism:
    """What `rounds` rounds are.

    Args:
      bound: the sensitivity of so many rounds, if it is known.

    Raises:
      ValueError: correlated noise with a law that does not limit participation.
    """
    if isinstance(law, Spaced):
        bound = (
            sensitivity(noise.strategy(max(rounds, 1)), law)
            if bound is None
            else float(bound)
        )
        words = (
            f"participations at least {law.min_separation} rounds apart, sensitivity "
            f"{bound:.4g}"
        )
        return Mechanism(
            sampling=None, sensitivity=bound, whole_run=True, relation=ZERO, words=words
        )
    if not noise.is_independent:
        raise ValueError(
            "noise that is correlated over rounds needs a sampler that limits "
            f"participation, and {law} does not: use samplers.spaced, or "
            "independent noise"
        )
    if isinstance(law, Poisson):
        words = f"Poisson sampling, rate {law.rate:.4g}"
        return Mechanism(
            sampling=law, sensitivity=1.0, whole_run=False, relation=LESS, words=words
        )
    if isinstance(law, WithoutReplacement):
        words = f"{law.cohort_size} of {law.n_clients} clients without replacement"
        return Mechanism(
            sampling=law,
            sensitivity=2.0,
            whole_run=False,
            relation=REPLACED,
            words=words,
        )
    words = "no amplification by sampling"
    return Mechanism(
        sampling=None, sensitivity=1.0, whole_run=False, relation=ZERO, words=words
    )


def epsilon_of(
    mechanism: Mechanism, noise_multiplier: float, rounds: int, delta: float
) -> float:
    """What so many rounds spend at delta."""
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return float("inf")
    from dp_accounting import rdp

    orders, divergences = _divergences(
        mechanism.event(noise_multiplier), mechanism.relation
    )
    spent = mechanism.times(rounds) * divergences
    epsilon, _ = rdp.compute_epsilon(list(orders), list(spent), delta)
    return float(epsilon)


def calibrated(
    mechanism: Mechanism, epsilon: float, rounds: int, delta: float, most: float
) -> float:
    """The least noise multiplier that spends at most epsilon, by
    `dp_accounting.calibrate_dp_mechanism`.

    Raises:
      ValueError: none up to `most` does.
    """
    dp = _dp_accounting()
    low, high = _bracket(mechanism, epsilon, rounds, delta, most)
    if low == 0:  # next to nothing is enough
        return high

    def whole(noise_multiplier: float) -> Any:
        return dp.SelfComposedDpEvent(
            mechanism.event(noise_multiplier), mechanism.times(rounds)
        )

    with _orders_left_out_in_silence():
        found = dp.calibrate_dp_mechanism(
            functools.partial(_accountant, mechanism.relation),
            whole,
            epsilon,
            delta,
            dp.ExplicitBracketInterval(low, high),
            tol=_TOLERANCE * low,
        )
    return float(found)


def _bracket(
    mechanism: Mechanism, epsilon: float, rounds: int, delta: float, most: float
) -> tuple[float, float]:
    """(too little noise, enough noise), a factor of two apart.

    0 for the first where there is always enough.
    """
    high = 1.0
    while epsilon_of(mechanism, high, rounds, delta) > epsilon:
        high *= 2
        if high > most:
            raise ValueError(
                f"no noise_multiplier up to {most:g} spends as little as epsilon={epsilon}"
            )
    while high > 1 / most:
        if epsilon_of(mechanism, high / 2, rounds, delta) > epsilon:
            return high / 2, high
        high /= 2
    return 0.0, high


@functools.lru_cache(maxsize=256)
def _divergences(event: Any, relation: str) -> tuple[np.ndarray, np.ndarray]:
    """(Renyi orders, divergences) of one event; composition adds them up."""
    with _orders_left_out_in_silence():
        accountant = _accountant(relation).compose(event)
    divergences = accountant.rdp
    if not (divergences >= 0).all():
        # The accountant would call such an epsilon zero.
        raise ArithmeticError(
            f"the accountant finds no divergence of {event}: {divergences}"
        )
    return accountant.orders, divergences


def _accountant(relation: str) -> Any:
    dp = _dp_accounting()
    from dp_accounting import rdp

    neighbours = dp.NeighboringRelation
    of_words = {
        LESS: neighbours.ADD_OR_REMOVE_ONE,
        ZERO: neighbours.REPLACE_SPECIAL,
        REPLACED: neighbours.REPLACE_ONE,
    }
    return rdp.RdpAccountant(neighboring_relation=of_words[relation])


@contextlib.contextmanager
def _orders_left_out_in_silence() -> Iterator[None]:
    """Drops the accountant's message that a Renyi order did not converge and is left out.

    There is one for each order and noise that is tried, dozens while a multiplier is
    looked for, and nothing to do: epsilon is the least over the orders, so one that is
    left out can only make it larger.
    """

    def is_heard(record: logging.LogRecord) -> bool:
        return "Excluding this order from the epsilon computation" not in " ".join(
            record.getMessage().split()
        )

    logger = logging.getLogger("absl")
    logger.addFilter(is_heard)
    try:
        yield
    finally:
        logger.removeFilter(is_heard)


def _dp_accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            "privacy accounting needs dp-accounting: pip install 'fedjax_fm[privacy]'"
        ) from error
    return dp_accounting
