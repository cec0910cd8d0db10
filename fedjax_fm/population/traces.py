"""Traces: who is available when, for `samplers.available`.

Arrays bool[n_rounds, n_clients], from a seed, on the host. A round after the last one
starts again at the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.column_values import as_array
from fedjax_fm.population.samplers.checks import check_n_clients


def diurnal(
    n_clients: int,
    n_rounds: int,
    *,
    period: float = 24.0,
    mean: float | Sequence[float] | np.ndarray = 0.5,
    amplitude: float | Sequence[float] | np.ndarray = 0.5,
    spread: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Gives each client its time of the day: phones train at night, on power and Wi-Fi.

        P(k is there in round t) = mean + amplitude sin(2 pi (t / period + phase_k))

    with phase_k ~ U[0, spread), independently over clients and rounds given the phases.

    Args:
      n_clients: clients in the population.
      n_rounds: length of the trace; with a whole number of days it continues smoothly.
      period: rounds a day.
      mean: share of the rounds in which a client is there; one number, or
        f64[n_clients].
      amplitude: 0 makes availability constant; one number, or f64[n_clients]. mean +-
        amplitude must lie in [0, 1].
      spread: days over which the clients' phases are spread. 1: all over the globe,
        equally many at any time. 0: one time zone, the population comes and goes as
        one.
      seed: of phases and coin flips.

    Returns:
      bool[n_rounds, n_clients].

    Raises:
      ValueError: an argument out of its range.

    References:
      Eichner, H. et al. (2019). Semi-Cyclic Stochastic Gradient Descent. ICML.
      arXiv:1904.10120 (why the day matters). Xiang, M. et al. (2024). Efficient
      Federated Learning against Heterogeneous and Non-stationary Client Unavailability.
      NeurIPS. arXiv:2409.17446 (sine waves).

    Example:
      >>> from fedjax_fm.population import traces
      >>> traces.diurnal(1000, 48).mean(axis=1).round(1)[:4].tolist()
      [0.5, 0.5, 0.5, 0.5]
      >>> share = traces.diurnal(1000, 48, spread=0.0).mean(axis=1)
      >>> share.round(1)[[0, 6, 12, 18]].tolist()
      [0.5, 1.0, 0.5, 0.0]
    """
    _check_sizes(n_clients, n_rounds, seed)
    means = _per_client("mean", mean, n_clients)
    amplitudes = _per_client("amplitude", amplitude, n_clients)
    swing = np.abs(amplitudes)
    wrong = np.flatnonzero(~((means - swing >= 0) & (means + swing <= 1)))
    if wrong.size:
        k = wrong[0]
        raise ValueError(
            "expected mean +- amplitude in [0, 1], a probability, got "
            f"mean={means[k]} and amplitude={amplitudes[k]}; lower the amplitude"
        )
    checks.real("period", period, above=0)
    checks.real("spread", spread, least=0, most=1)
    rng = np.random.default_rng(seed)
    phases = spread * rng.random(n_clients)
    trace = np.empty((n_rounds, n_clients), dtype=bool)
    for t in range(n_rounds):
        wave = np.sin(2 * np.pi * (t / period + phases))
        trace[t] = rng.random(n_clients) < means + amplitudes * wave
    return trace


def markov(
    n_clients: int,
    n_rounds: int,
    *,
    mean_on: float | Sequence[float] | np.ndarray,
    mean_off: float | Sequence[float] | np.ndarray,
    seed: int = 0,
) -> np.ndarray:
    """Makes each client a chain of two states: who is there now is likely to stay.

        P(on -> off) = 1 / mean_on,  P(off -> on) = 1 / mean_off,
        P(on) = mean_on / (mean_on + mean_off)

    Lengths of stay are geometric. The chains start in their stationary law and are
    independent of each other. With 1 / mean_on + 1 / mean_off = 1 there is no memory:
    each round is a coin flip.

    Args:
      n_clients: clients in the population.
      n_rounds: length of the trace.
      mean_on: mean number of rounds that a client stays, >= 1; one number, or
        f64[n_clients].
      mean_off: mean number of rounds that it stays away, >= 1; one number, or
        f64[n_clients].
      seed: of the chains.

    Returns:
      bool[n_rounds, n_clients].

    Raises:
      ValueError: an argument out of its range.

    References:
      Rodio, A. et al. (2023). Federated Learning under Heterogeneous and Correlated
      Client Availability. INFOCOM. arXiv:2301.04632.

    Example:
      >>> from fedjax_fm.population import traces
      >>> traces.markov(2000, 50, mean_on=2.0, mean_off=6.0).mean().round(2).item()
      0.25
    """
    _check_sizes(n_clients, n_rounds, seed)
    stays = {
        "mean_on": _per_client("mean_on", mean_on, n_clients),
        "mean_off": _per_client("mean_off", mean_off, n_clients),
    }
    for name, values in stays.items():
        wrong = values[~(np.isfinite(values) & (values >= 1))]
        if wrong.size:
            raise ValueError(
                f"expected a finite {name} >= 1, in rounds, got {name}={wrong[0]}"
            )
    on, off = stays["mean_on"], stays["mean_off"]
    rng = np.random.default_rng(seed)
    trace = np.empty((n_rounds, n_clients), dtype=bool)
    trace[0] = rng.random(n_clients) < on / (on + off)
    for t in range(1, n_rounds):
        likely = np.where(trace[t - 1], 1 - 1 / on, 1 / off)
        trace[t] = rng.random(n_clients) < likely
    return trace


def _check_sizes(n_clients: int, n_rounds: int, seed: int) -> None:
    """Refuses sizes and seeds out of their ranges."""
    check_n_clients(n_clients)
    checks.whole("n_rounds", n_rounds, least=1, most=2**31 - 1)
    checks.whole("seed", seed, least=0)


def _per_client(
    name: str, value: float | Sequence[float] | np.ndarray, n_clients: int
) -> np.ndarray:
    """f64[n_clients], from one finite number or one per client."""
    if isinstance(value, (str, bytes)) or np.ndim(value) == 0:
        return np.full(n_clients, checks.real(name, value), dtype=np.float64)
    numbers = as_array(name, value)
    if numbers.shape != (n_clients,) or numbers.dtype.kind not in "iuf":
        raise ValueError(
            f"expected {name} as one number or [{n_clients}], got shape "
            f"{numbers.shape} and dtype {numbers.dtype}"
        )
    for k in np.flatnonzero(~np.isfinite(numbers))[:1]:
        checks.real(f"{name}[{k}]", numbers[k])
    return numbers.astype(np.float64)
