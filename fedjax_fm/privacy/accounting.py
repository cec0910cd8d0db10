"""What a run has spent, by `dp_accounting`, for the sampler and the noise that were really used.

The number of rounds is all that changes during a run, so a resumed run has spent what an unbroken one has.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.population.samplers.laws import Poisson, Spaced, WithoutReplacement
from fedjax_fm.privacy.noise import Noise
from fedjax_fm.types import Sampler

MOST_NOISE = 1e4


class Spent(NamedTuple):
    """An (epsilon, delta) guarantee at the level of clients."""

    epsilon: float
    delta: float
    relation: str  # which data sets are neighbours
    mechanism: str  # in words, for reports


def sensitivity(strategy: np.ndarray, law: Spaced) -> float:
    """Largest l2 norm of C x over one client's contributions x of norm at most 1 each, as often as `law` allows.

    Exact where contributions that may belong to one client do not overlap under C: the largest sum of squared column
    norms over rounds at least `min_separation` apart, by dynamic programming (Choquette-Choo et al. 2023, arXiv
    2306.08153, section 3).

    Raises:
      ValueError: they overlap; says what to change.
    """
    gram = strategy.T @ strategy
    rounds = len(gram)
    most = rounds if law.max_participations is None else law.max_participations
    far = np.abs(np.subtract.outer(np.arange(rounds), np.arange(rounds))) >= law.min_separation
    if most > 1 and np.abs(np.where(far, gram, 0)).max(initial=0) > 1e-12:
        raise ValueError(
            f"a client's contributions {law.min_separation} rounds apart overlap under this noise: use at most "
            f"{law.min_separation} bands, trees of at most {law.min_separation} rounds, or max_participations=1"
        )
    squares = np.diag(gram)
    best = np.zeros(rounds + law.min_separation)  # best[t]: over rounds >= t, with the participations used so far
    for _ in range(min(most, -(-rounds // law.min_separation))):
        new = np.zeros_like(best)
        for t in reversed(range(rounds)):
            new[t] = max(
                new[t + 1] if t + 1 < len(new) else 0.0, squares[t] + best[min(t + law.min_separation, len(best) - 1)]
            )
        best = new
    return float(np.sqrt(best[0]))


def spent(sampler: Sampler, noise: Noise, noise_multiplier: float, rounds: int, delta: float) -> Spent:
    """Privacy of `rounds` rounds with z ~ N(0, noise_multiplier^2 clip^2).

    - independent noise, Poisson sampling: amplified, one client more or less;
    - independent noise, uniform without replacement: amplified, one client replaced (its contribution changes by up to
      twice the clip norm, so the multiplier counts half);
    - any noise, a sampler with limits on participation: not amplified, rho = sens(C)^2 / (2 noise_multiplier^2);
    - independent noise, a sampler that promises nothing: as if everybody took part in each round.

    Raises:
      ValueError: correlated noise with a sampler that does not limit participation: nothing is known of it.
    """
    if not 0 < delta < 1:
        raise ValueError(f"expected 0 < delta < 1, got delta={delta}")
    if rounds < 0 or noise_multiplier < 0:
        raise ValueError(f"expected rounds and noise_multiplier >= 0, got {rounds} and {noise_multiplier}")
    event, replace_one, mechanism = _event(sampler, noise, noise_multiplier, rounds)
    from dp_accounting import NeighboringRelation as Relation
    from dp_accounting import rdp

    relation = Relation.REPLACE_ONE if replace_one else Relation.ADD_OR_REMOVE_ONE
    accountant = rdp.RdpAccountant(neighboring_relation=relation)
    if rounds:
        accountant.compose(event)
    words = "one client's data replaced" if replace_one else "one client more or less"
    return Spent(float(accountant.get_epsilon(delta)), delta, words, mechanism)


def multiplier_for(epsilon: float, sampler: Sampler, noise: Noise, rounds: int, delta: float) -> float:
    """The least noise_multiplier with which `rounds` rounds spend at most epsilon, to 0.1 % of it.

    Raises:
      ValueError: what `spent` refuses; epsilon or rounds are not positive; no noise of at most 1e4 is enough.
    """
    if not epsilon > 0 or not math.isfinite(epsilon) or rounds < 1:
        raise ValueError(f"expected a finite epsilon > 0 and rounds >= 1, got epsilon={epsilon}, rounds={rounds}")
    spends = lambda multiplier: spent(sampler, noise, multiplier, rounds, delta).epsilon
    low, high = 0.0, 1.0
    while spends(high) > epsilon:
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise ValueError(f"no noise_multiplier up to {MOST_NOISE:g} spends as little as epsilon={epsilon}")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spends(middle) > epsilon else (low, middle)
    return high


def _event(sampler: Sampler, noise: Noise, multiplier: float, rounds: int) -> tuple[Any, bool, str]:
    try:
        import dp_accounting as dp
    except ImportError as error:
        raise ImportError("privacy accounting needs dp-accounting: pip install 'fedjax_fm[privacy]'") from error
    law = sampler.law
    composed = lambda event: dp.SelfComposedDpEvent(event, rounds)
    if isinstance(law, Spaced):
        bound = sensitivity(noise.strategy(max(rounds, 1)), law)
        event = dp.GaussianDpEvent(multiplier / bound)
        return event, False, f"participations at least {law.min_separation} rounds apart, sensitivity {bound:.4g}"
    if not noise.is_independent:
        raise ValueError(
            f"noise that is correlated over rounds needs a sampler that limits participation, and {law} does not: use "
            "samplers.spaced, or independent noise"
        )
    if isinstance(law, Poisson):
        event = dp.PoissonSampledDpEvent(law.rate, dp.GaussianDpEvent(multiplier))
        return composed(event), False, f"Poisson sampling, rate {law.rate:.4g}"
    if isinstance(law, WithoutReplacement):
        event = dp.SampledWithoutReplacementDpEvent(law.n_clients, law.cohort_size, dp.GaussianDpEvent(multiplier / 2))
        return composed(event), True, f"{law.cohort_size} of {law.n_clients} clients without replacement"
    return composed(dp.GaussianDpEvent(multiplier)), False, "no amplification by sampling"
