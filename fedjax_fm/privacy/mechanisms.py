"""Laws and noise in the terms of `dp_accounting`, which is used here only."""

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
MOST_NOISE = 1e4  # the largest multiplier that is tried
_TOLERANCE = 1e-4  # of a multiplier that is looked for, relative


class Mechanism(NamedTuple):
    """A Gaussian, sampled or not, once a round or once for the whole run.

    Attributes:
      sampling: Poisson, WithoutReplacement or None.
      sensitivity: in clip norms.
      whole_run: whether it is one mechanism for the whole run.
      relation: which data sets are neighbours, in words.
      words: the mechanism in words.
    """

    sampling: Any
    sensitivity: float
    whole_run: bool
    relation: str
    words: str

    def event(self, noise_multiplier: float) -> Any:
        """A `dp_accounting.DpEvent` of one round, or of the whole run.

        Args:
          noise_multiplier: in clip norms, above 0.
        """
        dp = _dp_accounting()
        gaussian = dp.GaussianDpEvent(noise_multiplier / self.sensitivity)
        if isinstance(self.sampling, Poisson):
            return dp.PoissonSampledDpEvent(self.sampling.rate, gaussian)
        if isinstance(self.sampling, WithoutReplacement):
            return dp.SampledWithoutReplacementDpEvent(*self.sampling, gaussian)
        return gaussian

    def times(self, rounds: int) -> int:
        """How often the event happens in a number of rounds.

        Args:
          rounds: done or planned.
        """
        return 1 if self.whole_run else rounds


def mechanism_of(
    law: Any, noise: Noise, rounds: int, bound: float | None = None
) -> Mechanism:
    """The mechanism of `rounds` rounds.

    Args:
      law: of the sampler.
      noise: how it is correlated over rounds.
      rounds: done or planned.
      bound: the sensitivity of these rounds, if it was computed before.

    Raises:
      ValueError: correlated noise with a law that does not limit participation.
    """
    if isinstance(law, Spaced):
        if bound is None:
            strategy = noise.strategy(max(rounds, 1))
            bound = sensitivity(strategy, law)
        bound = float(bound)
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
    """Epsilon of a number of rounds at delta.

    Args:
      mechanism: of a round or of the run.
      noise_multiplier: in clip norms; 0 gives infinity.
      rounds: done or planned; 0 gives 0.
      delta: of the guarantee.
    """
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return float("inf")
    from dp_accounting import rdp

    event = mechanism.event(noise_multiplier)
    orders, divergences = _divergences(event, mechanism.relation)
    spent = list(mechanism.times(rounds) * divergences)
    epsilon, _ = rdp.compute_epsilon(list(orders), spent, delta)
    return float(epsilon)


def calibrated(
    mechanism: Mechanism, epsilon: float, rounds: int, delta: float
) -> float:
    """The least noise multiplier that spends at most epsilon.

    By `dp_accounting.calibrate_dp_mechanism`.

    Args:
      mechanism: of a round or of the run.
      epsilon: target.
      rounds: planned.
      delta: of the guarantee.

    Raises:
      ValueError: none up to 1e4 does.
    """
    dp = _dp_accounting()
    low, high = _bracket(mechanism, epsilon, rounds, delta)
    if low == 0:  # next to nothing is enough
        return high

    def whole(noise_multiplier: float) -> Any:
        event = mechanism.event(noise_multiplier)
        return dp.SelfComposedDpEvent(event, mechanism.times(rounds))

    with _orders_left_out_in_silence():
        found = dp.calibrate_dp_mechanism(
            functools.partial(_accountant, mechanism.relation),
            whole,
            target_epsilon=epsilon,
            target_delta=delta,
            bracket_interval=dp.ExplicitBracketInterval(low, high),
            tol=_TOLERANCE * low,
        )
    return float(found)


def _bracket(
    mechanism: Mechanism, epsilon: float, rounds: int, delta: float
) -> tuple[float, float]:
    """(too little noise, enough noise), a factor of two apart.

    0 for the first where there is always enough.
    """
    high = 1.0
    while epsilon_of(mechanism, high, rounds, delta) > epsilon:
        high *= 2
        if high > MOST_NOISE:
            raise ValueError(
                f"no noise_multiplier up to {MOST_NOISE:g} spends as little as "
                f"epsilon={epsilon}"
            )
    while high > 1 / MOST_NOISE:
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
    """A fresh accountant for neighbours in this sense."""
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
    """Drops the accountant's message that a Renyi order is left out.

    It says that the order did not converge. There is one for each order and noise that
    is tried, dozens while a multiplier is looked for, and nothing to do: epsilon is the
    least over the orders, so one that is left out can only make it larger.
    """

    def is_heard(record: logging.LogRecord) -> bool:
        words = record.getMessage().split()
        return "Excluding this order from the epsilon computation" not in " ".join(
            words
        )

    logger = logging.getLogger("absl")
    logger.addFilter(is_heard)
    try:
        yield
    finally:
        logger.removeFilter(is_heard)


def _dp_accounting() -> Any:
    """The package, or an error that says how to install it."""
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            "privacy accounting needs dp-accounting: pip install 'fedjax_fm[privacy]'"
        ) from error
    return dp_accounting


# Events of examples, one replaced


def gaussian(noise_multiplier: float) -> Any:
    """A Gaussian, as a `dp_accounting.DpEvent`.

    Args:
      noise_multiplier: in units of what one example moves.
    """
    return _dp_accounting().GaussianDpEvent(noise_multiplier)


def sampled(noise_multiplier: float, drawn: int, n: int) -> Any:
    """A Gaussian on examples that are drawn without replacement.

    Args:
      noise_multiplier: in units of what one example moves.
      drawn: examples, at most n.
      n: examples that there are.
    """
    if drawn == n:
        return gaussian(noise_multiplier)
    dp = _dp_accounting()
    return dp.SampledWithoutReplacementDpEvent(n, drawn, gaussian(noise_multiplier))


def epsilon_of_events(events: list[Any], rounds: int, delta: float) -> float:
    """Epsilon at delta of rounds in each of which these events happen.

    Args:
      events: from `gaussian` and `sampled`, one example replaced.
      rounds: done or planned.
      delta: of the guarantee.
    """
    from dp_accounting import rdp

    found = [_divergences(event, REPLACED) for event in events]
    orders, _ = found[0]
    summed = np.sum([divergences for _, divergences in found], axis=0)
    epsilon, _ = rdp.compute_epsilon(list(orders), list(rounds * summed), delta)
    return float(epsilon)
