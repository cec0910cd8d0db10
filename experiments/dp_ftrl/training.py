"""DP-FedAvg and DP-FTRL at one rho, with a log of who came."""

from typing import Any

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, privacy, study
from fedjax_fm.experiments.dp_ftrl.words import TASK, weights
from fedjax_fm.experiments.shared.controls import as_it_begins
from fedjax_fm.population import samplers
from fedjax_fm.population.samplers.laws import Spaced


def noise_of(name: str, rest: int) -> privacy.Noise:
    """A kind of noise under which a user's participations do not overlap.

    Args:
      name: "independent", "tree" or "banded".
      rest: rounds between participations, at least.
    """
    if name == "tree":
        return privacy.binary_tree(rest)
    if name == "banded":
        return privacy.banded(privacy.square_root_coefficients(rest))
    return privacy.independent()


def multiplier(noise: privacy.Noise, rest: int, rounds: int, rho: float) -> float:
    """The noise multiplier sensitivity / sqrt(2 rho).

    Args:
      noise: over the rounds.
      rest: rounds between participations, at least.
      rounds: in all.
      rho: of zero-concentrated privacy, of the whole run.
    """
    moved = privacy.sensitivity(noise.strategy(rounds), Spaced(rest))
    return moved / float(np.sqrt(2 * rho))


class Log:
    """Who came, read from the sampler's state after each round."""

    def __init__(self) -> None:
        self.times: list[np.ndarray] = []  # participations of each user so far

    def __call__(self, round: int, state: Any, metrics: Any) -> None:
        """A callback of `run`."""
        self.times.append(np.asarray(state.carry.sampler[2]).copy())

    def separation(self) -> int:
        """The least number of rounds between two participations of a user."""
        came = np.diff(np.stack([np.zeros_like(self.times[0]), *self.times]), axis=0)
        gaps = [np.diff(np.flatnonzero(user)) for user in came.T]
        return min((int(gap.min()) for gap in gaps if len(gap)), default=len(came))

    def most(self) -> int:
        """Participations of the user who came most often."""
        return int(self.times[-1].max())


def dp_method(run: study.Run, noise: privacy.Noise, z: float) -> ffm.Algorithm:
    """FedAvg with clipped updates and noise, at the rate and the clip norm of the run.

    Args:
      run: of the arm.
      noise: its kind.
      z: the noise multiplier.
    """
    config = run.config
    return algorithms.dp_fedavg(
        TASK,
        optax.sgd(run["rate"]),
        optax.sgd(1.0, momentum=config.momentum),
        noise=noise,
        noise_multiplier=z,
        clip_norm=run["clip"],
        epochs=config.epochs,
        batch_size=config.batch_size,
    )


def private(run: study.Run, noise: str, rho: float | None) -> dict[str, float]:
    """A run at one rho.

    Args:
      run: of the arm.
      noise: of `noise_of`.
      rho: of the whole run; None: no noise.
    """
    config, clients = run.config, run.data.clients
    made = noise_of(noise, config.rest)
    z = 0.0 if rho is None else multiplier(made, config.rest, config.rounds, rho)
    method = dp_method(run, made, z)
    log = Log()
    cohort = min(config.cohort, len(clients) // config.rest)
    found = run.simulate(
        method,
        clients,
        weights(config, run.seed),
        config.rounds,
        cohort_size=cohort,
        sampler=samplers.spaced(len(clients), cohort, config.rest),
        task=TASK,
        test=run.data.test,
        every=1,
        looks=[log],
    )
    if log.separation() < config.rest:
        raise RuntimeError(
            f"a user came again after {log.separation()} rounds; rho holds for at least "
            f"{config.rest}"
        )
    return {
        "accuracy": found.scores["accuracy"],
        "loss": found.scores["loss"],
        "noise": z,
        "separation": float(log.separation()),
        "times": float(log.most()),
    }


def untrained(run: study.Run) -> dict[str, float]:
    """The model as it begins."""
    first: ffm.types.Tree = weights(run.config, run.seed)
    return {"accuracy": as_it_begins(TASK, first, (), run.data.test)}
