"""What a private method was accounted for, held against how it is run."""

from typing import Any

import numpy as np

from fedjax_fm.population.samplers.laws import Poisson, Spaced, WithoutReplacement
from fedjax_fm.types import Algorithm, Privacy, Sampler, Setting


def check_sampling(algorithm: Algorithm, sampler: Sampler, setting: Setting) -> None:
    """Refuses another sampler or cohort than the method was accounted for.

    Args:
      algorithm: private or not.
      sampler: of the simulator.
      setting: its sizes; a private method divides by the cohort's.

    Raises:
      ValueError: another law, another number of clients, or a cohort_size that is not
        the sampler's mean; says what to pass.
    """
    privacy = algorithm.privacy
    if privacy is None:
        return
    law, asked = sampler.law, privacy.law
    if privacy.epsilon is not None and not (type(law) is type(asked) and law == asked):
        raise ValueError(
            f"this method was accounted for clients drawn by {_law_in_words(asked)}, and "
            f"the simulator draws them by {_law_in_words(law)}: pass "
            f"sampler={_sampler_of(asked, setting)}, or account for this sampler"
        )
    if isinstance(law, WithoutReplacement) and law.n_clients != setting.n_clients:
        raise ValueError(
            f"the sampler draws from {law.n_clients} clients, and the population "
            f"has {setting.n_clients}: make it for them, and account for that"
        )
    mean = _mean_cohort(law, setting.n_clients)
    if mean is not None and abs(setting.cohort_size - mean) >= 1:
        raise ValueError(
            f"cohort_size={setting.cohort_size}, by which this method divides, is "
            f"not the mean of the sampler's cohorts, {mean:.4g}: pass "
            f"cohort_size={max(round(mean), 1)}, or a sampler of that mean"
        )


def check_rounds(privacy: Privacy | None, done: int, rounds: int) -> None:
    """Refuses to run past the rounds that were accounted for.

    Args:
      privacy: of the algorithm.
      done: rounds so far.
      rounds: that are asked for.

    Raises:
      ValueError: more than were accounted for.
    """
    if privacy is None or privacy.rounds is None or rounds == 0:
        return
    if done + rounds <= privacy.rounds:
        return
    raise ValueError(
        f"this method was accounted for {privacy.rounds} rounds: {done} are done, "
        f"and {rounds} more would spend more than its epsilon; run "
        f"{max(privacy.rounds - done, 0)}, or account for {done + rounds} from "
        "the start"
    )


def with_epsilon(
    metrics: dict[str, np.ndarray], privacy: Privacy | None, done: int
) -> dict[str, np.ndarray]:
    """The metrics with `epsilon` f64[rounds], spent after each round.

    Args:
      metrics: {name: array[rounds]}.
      privacy: of the algorithm.
      done: rounds before the first of them.
    """
    if privacy is None or privacy.epsilon is None or not metrics:
        return metrics
    first, *_ = metrics.values()
    rounds = len(first)
    after = [privacy.epsilon(done + i + 1) for i in range(rounds)]
    return {**metrics, "epsilon": np.array(after, np.float64)}


def summary_of(privacy: Privacy | None) -> list[str]:
    """Lines for people; none for a method that is not private."""
    if privacy is None:
        return []
    if privacy.epsilon is None:
        advice = (
            ": privacy.multiplier_for or accounting=privacy.Accounting(...)"
            if privacy.released
            else ""
        )
        return [f"privacy: {privacy.mechanism}{advice}"]
    if privacy.rounds is None:
        spent = f"accounted for at delta {privacy.delta:g}"
    else:
        spent = (
            f"epsilon {privacy.epsilon(privacy.rounds):.3g} at delta "
            f"{privacy.delta:g} after {privacy.rounds} rounds"
        )
    released = ", ".join(("the server's tree", *privacy.released))
    return [
        f"privacy: {spent}, {privacy.relation}, {privacy.mechanism}",
        f"released: {released}; other metrics are exact diagnostics of the simulator",
    ]


def _mean_cohort(law: Any, n_clients: int) -> float | None:
    if isinstance(law, Poisson):
        return law.rate * n_clients
    return law.cohort_size if isinstance(law, WithoutReplacement) else None


def _law_in_words(law: Any) -> str:
    return "a sampler that promises nothing (law None)" if law is None else str(law)


def _sampler_of(law: Any, setting: Setting) -> str:
    """How one makes a sampler of that law."""
    if isinstance(law, Poisson):
        return f"samplers.poisson({setting.n_clients}, {law.rate:g})"
    if isinstance(law, WithoutReplacement):
        return f"samplers.uniform({law.n_clients}, {law.cohort_size})"
    if isinstance(law, Spaced):
        limits = f"{law.min_separation}, {law.max_participations}"
        return f"samplers.spaced({setting.n_clients}, {setting.cohort_size}, {limits})"
    return "the one it was accounted for"
