"""What a run spends, by `dp_accounting`, for the sampler and the noise really used.

The number of rounds is all that changes during a run, so a resumed run has spent what
an unbroken one has. What noise was accounted for (`Accounted`) travels with it: in a
`Multiplier`, in the method, to the simulator.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.samplers.laws import Spaced
from fedjax_fm.privacy.mechanisms import Mechanism, calibrated, epsilon_of, mechanism_of
from fedjax_fm.privacy.noise import Noise
from fedjax_fm.privacy.sensitivity import sensitivities
from fedjax_fm.types import Privacy, Sampler


class Spent(NamedTuple):
    """An (epsilon, delta) guarantee at the level of clients.

    Attributes:
      epsilon: bound on the log-likelihood ratio; infinity without noise.
      delta: probability with which the bound may fail.
      relation: which data sets are neighbours, in words.
      mechanism: sampling and noise in words, for reports.
    """

    epsilon: float
    delta: float
    relation: str
    mechanism: str


class Accounting(NamedTuple):
    """What a run is accounted for, where you choose the noise multiplier yourself.

    Pass it to `dp_fedavg` beside a `noise_multiplier`. To have the multiplier chosen,
    see `multiplier_for`.

    Attributes:
      sampler: the one that the simulator uses.
      rounds: planned; a run may stop earlier, but not later.
      delta: of the guarantee, above 0 and below 1.

    Example:
      >>> from fedjax_fm import privacy
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.poisson(1000, rate=0.02)
      >>> accounting = privacy.Accounting(sampler, rounds=200, delta=1e-5)
    """

    sampler: Sampler
    rounds: int
    delta: float


class Accounted(NamedTuple):
    """What a noise multiplier was accounted for.

    Attributes:
      law: of the sampler, one of `population.samplers.laws`.
      noise: how it is correlated over rounds.
      rounds: planned.
      delta: of the guarantee.
    """

    law: Any
    noise: Noise
    rounds: int
    delta: float


class Multiplier(float):
    """A noise multiplier that carries what it was made for.

    Arithmetic with it gives plain floats, which do not.

    Attributes:
      accounted: sampler's law, noise, rounds and delta.
    """

    accounted: Accounted

    def __new__(cls, value: float, accounted: Accounted) -> "Multiplier":
        """Makes one of a number.

        Args:
          value: noise's standard deviation, in clip norms.
          accounted: what it was made for.
        """
        made = super().__new__(cls, value)
        made.accounted = accounted
        return made

    def __getnewargs__(self) -> tuple[float, Accounted]:
        return float(self), self.accounted


def spent(
    sampler: Sampler, noise: Noise, noise_multiplier: float, rounds: int, delta: float
) -> Spent:
    """Privacy of `rounds` rounds with noise z ~ N(0, noise_multiplier^2 clip^2).

    Args:
      sampler: whose `law` is relied on.
      noise: how z is correlated over rounds.
      noise_multiplier: of update and, with an adaptive clip, count together, in clip
        norms; 0 spends infinity.
      rounds: done or planned.
      delta: of the guarantee, 0 < delta < 1; well below one over the number of clients.

    Returns:
      epsilon at `delta`, which data sets are neighbours, and the mechanism in words.

    Formal guarantees:
      For two neighbouring populations D and D', and every set A of outcomes of all
      rounds' releases together, P[M(D) in A] <= exp(epsilon) P[M(D') in A] + delta, if
      each client's contribution to a sum is at most the clip norm (`clipped_mean`), if
      noise of that deviation is added to the sum, and if clients are drawn by the law:

      | law | noise | amplified | D' is D with |
      |---|---|---|---|
      | `Poisson` | independent | yes | one client more or less |
      | `WithoutReplacement` | independent | yes | one client's data replaced |
      | `Spaced` | any | no | one client's contribution there or zero |
      | None | independent | no | one client's contribution there or zero |

      One client replaced moves a sum by up to twice the norm, so the multiplier counts
      half. With limits on participation the run is one Gaussian, rho = sens(C)^2 / (2
      noise_multiplier^2). Law None counts as if every client took part in each round. A sampler
      that draws a fixed number of clients, or by who came before, draws others if a
      client is taken out: hence "there or zero", where the client is drawn all the same
      and sends nothing.

      Epsilon is an upper bound, by Renyi orders; exact arithmetic is assumed.

    Raises:
      ValueError: numbers out of bounds; correlated noise with a sampler that does not
        limit participation, of which nothing is known.
      ImportError: dp-accounting is not installed.

    References:
      Mironov, Talwar, Zhang 2019, arXiv 1908.10530 (Poisson); Wang, Balle,
      Kasiviswanathan 2019, arXiv 1808.00087 (without replacement); Denisov et al. 2022,
      arXiv 2202.08312 (matrix mechanisms, adaptive streams).

    Example:
      >>> from fedjax_fm import privacy
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.poisson(1000, rate=0.02)
      >>> noise = privacy.independent()
      >>> found = privacy.spent(sampler, noise, 1.0, rounds=200, delta=1e-5)
      >>> round(found.epsilon, 1), found.relation
      (2.2, 'one client more or less')
    """
    law = _law_of(sampler)
    check_noise(noise)
    checks.real("noise_multiplier", noise_multiplier, least=0)
    checks.whole("rounds", rounds, least=0)
    checks.real("delta", delta, above=0, below=1)
    mechanism = mechanism_of(law, noise, rounds)
    return _spent(mechanism, float(noise_multiplier), rounds, delta)


def multiplier_for(
    epsilon: float, sampler: Sampler, noise: Noise, rounds: int, delta: float
) -> Multiplier:
    """The least noise multiplier with which `rounds` rounds spend at most epsilon.

    To 0.02 % of it.

    Args:
      epsilon: target, above 0.
      sampler: whose `law` is relied on, as for `spent`.
      noise: how the noise is correlated over rounds.
      rounds: planned, at least 1.
      delta: of the guarantee, 0 < delta < 1.

    Returns:
      A float that carries what it is for: `dp_fedavg` takes that over, and a simulator
      refuses another sampler, more rounds, or another size of cohort.

    Raises:
      ValueError: what `spent` refuses; epsilon or rounds are not positive; no noise of
        at most 1e4 is enough.
      ImportError: dp-accounting is not installed.

    Example:
      >>> from fedjax_fm import privacy
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.spaced(1000, cohort_size=20, min_separation=40)
      >>> noise = privacy.independent()
      >>> found = privacy.multiplier_for(8.0, sampler, noise, rounds=200, delta=1e-5)
      >>> round(float(found), 2), found.accounted.rounds
      (1.43, 200)
    """
    law = _law_of(sampler)
    check_noise(noise)
    checks.real("delta", delta, above=0, below=1)
    try:
        checks.real("epsilon", epsilon, above=0)
        checks.whole("rounds", rounds, least=1)
    except (TypeError, ValueError) as error:
        found = f"got epsilon={epsilon!r}, rounds={rounds!r}"
        raise type(error)(
            f"expected a finite epsilon > 0 and rounds >= 1, {found}"
        ) from None
    mechanism = mechanism_of(law, noise, rounds)
    found = calibrated(mechanism, epsilon, rounds, delta)
    accounted = Accounted(law=law, noise=noise, rounds=rounds, delta=delta)
    return Multiplier(found, accounted)


def accounted_for(
    noise: Noise, noise_multiplier: float, accounting: Accounting | None
) -> Accounted | None:
    """What a method with this noise was accounted for; None if nothing was said.

    Args:
      noise: of the method.
      noise_multiplier: of the method; a `Multiplier` says what it was made for.
      accounting: what the caller says, or None.

    Raises:
      ValueError: the multiplier was made for other noise, or for something else than
        `accounting` says; nothing is known of this noise with this sampler; there is no
        noise.
    """
    check_noise(noise)
    carried = (
        noise_multiplier.accounted if isinstance(noise_multiplier, Multiplier) else None
    )
    said = carried if accounting is None else _checked(accounting, noise)
    if said is None:
        return None
    if carried is not None:
        _check_agree(carried, said, noise)
    if noise_multiplier == 0:
        raise ValueError(
            "noise_multiplier=0 adds no noise, of which there is nothing to "
            "account: leave accounting out"
        )
    mechanism_of(said.law, noise, said.rounds)  # refuses what nothing is known of
    return said._replace(noise=noise)


def _check_agree(carried: Accounted, said: Accounted, noise: Noise) -> None:
    """Refuses a multiplier that was made for something else than the method says."""
    if not _same(carried.noise, noise, carried.rounds):
        raise ValueError(
            "this noise_multiplier was made for other noise than the one given "
            "here: pass the same noise to privacy.multiplier_for and to the "
            "method"
        )
    if (carried.rounds, carried.delta) != (said.rounds, said.delta):
        raise ValueError(
            f"accounted for twice: the noise_multiplier for {_told(carried)}, "
            f"accounting= says {_told(said)}"
        )
    if not same_law(carried.law, said.law):
        raise ValueError(
            f"accounted for twice: the noise_multiplier for {carried.law}, "
            f"accounting= says {said.law}"
        )


def privacy_of(
    accounted: Accounted | None, noise_multiplier: float, released: tuple[str, ...]
) -> Privacy:
    """What a method says of itself, for `Algorithm.privacy`.

    Epsilons are computed when they are asked for, and only on the host.

    Args:
      accounted: what it was accounted for; None for noise without a guarantee.
      noise_multiplier: of the method.
      released: names of the metrics that the guarantee covers.
    """
    if accounted is None:
        return Privacy(
            mechanism="noise is added, but nothing is accounted", released=released
        )
    law, noise, rounds, delta = accounted
    mechanism = mechanism_of(law, noise, rounds)
    return Privacy(
        law=law,
        rounds=rounds,
        delta=delta,
        epsilon=_epsilon_after(accounted, float(noise_multiplier)),
        relation=mechanism.relation,
        mechanism=mechanism.words,
        released=released,
    )


def same_law(one: Any, other: Any) -> bool:
    """Whether two samplers' laws are one; as tuples, laws of other kinds may be equal.

    Args:
      one: a law, or None.
      other: a law, or None.
    """
    return type(one) is type(other) and one == other


def _epsilon_after(
    accounted: Accounted, noise_multiplier: float
) -> Callable[[int], float]:
    """`rounds done -> epsilon`, each computed once."""
    law, noise, rounds, delta = accounted

    @functools.cache
    def bounds() -> np.ndarray:
        return sensitivities(noise.strategy(rounds), law)

    @functools.cache
    def epsilon(done: int) -> float:
        if isinstance(law, Spaced) and done:
            mechanism = mechanism_of(law, noise, done, bounds()[done])
        else:
            mechanism = mechanism_of(law, noise, done)
        return _spent(mechanism, noise_multiplier, done, delta).epsilon

    return epsilon


def _spent(
    mechanism: Mechanism, noise_multiplier: float, rounds: int, delta: float
) -> Spent:
    """Privacy that rounds of a mechanism spend."""
    epsilon = epsilon_of(mechanism, noise_multiplier, rounds, delta)
    return Spent(
        epsilon=epsilon,
        delta=delta,
        relation=mechanism.relation,
        mechanism=mechanism.words,
    )


def _checked(accounting: Accounting, noise: Noise) -> Accounted:
    """What `accounting=` says, with the method's noise."""
    if not isinstance(accounting, Accounting):
        raise TypeError(
            "expected privacy.Accounting(sampler, rounds, delta), got "
            f"accounting={accounting!r}"
        )
    law = _law_of(accounting.sampler)
    checks.whole("rounds", accounting.rounds, least=1)
    checks.real("delta", accounting.delta, above=0, below=1)
    return Accounted(
        law=law, noise=noise, rounds=accounting.rounds, delta=accounting.delta
    )


def _law_of(sampler: Sampler) -> Any:
    """The law of a sampler; refuses anything else."""
    if not isinstance(sampler, Sampler):
        raise TypeError(
            "expected a sampler of fedjax_fm.population.samplers, got "
            f"sampler={sampler!r}"
        )
    return sampler.law


def check_noise(noise: Noise) -> None:
    """Refuses what is no `Noise`.

    Args:
      noise: what should be one.

    Raises:
      TypeError: it is none.
    """
    if not isinstance(noise, Noise):
        expected = (
            "privacy.independent(), privacy.binary_tree(...) or privacy.banded(...)"
        )
        raise TypeError(f"expected {expected}, got noise={noise!r}")


def _same(one: Noise, other: Noise, rounds: int) -> bool:
    """Whether two kinds of noise have one strategy over these rounds."""
    if one.is_independent != other.is_independent:
        return False
    if one.is_independent:
        return True
    return np.array_equal(one.strategy(rounds), other.strategy(rounds))


def _told(accounted: Accounted) -> str:
    """Rounds and delta in words."""
    return f"{accounted.rounds} rounds at delta={accounted.delta:g}"
