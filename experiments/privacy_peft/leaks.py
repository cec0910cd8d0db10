"""What a model tells of its clients: exposure of canaries, and who was a member."""

from typing import Any, NamedTuple

import numpy as np

import fedjax_fm as ffm
from fedjax_fm import callbacks, peft, study, tasks
from fedjax_fm.audit.subject import Promise, for_a_replaced_client
from fedjax_fm.evaluation.leaks import (
    candidate_secrets,
    exposure,
    membership,
    one_run_epsilon,
)
from fedjax_fm.experiments.privacy_peft.clients import Data
from fedjax_fm.experiments.privacy_peft.likelihoods import (
    Told,
    log_chances,
    of_secrets,
    told,
)
from fedjax_fm.privacy.mechanisms import LESS
from fedjax_fm.types import Tree


class Measured(NamedTuple):
    """What was found of a model.

    Attributes:
      scores: {name: number}.
      exposures: {"planted", "left_out": of each canary, in bits}.
      sides: members and outsiders, how many.
    """

    scores: dict[str, float]
    exposures: dict[str, list[float]]
    sides: tuple[int, int]

    @property
    def notes(self) -> dict[str, Any]:
        """What a cell of the study keeps beside its scores."""
        return {"exposures": self.exposures, "sides": list(self.sides)}


class Watch(NamedTuple):
    """What is measured of a model.

    Attributes:
      data: of the seed.
      adapted: the model before training.
      task: of it.
      rows: of a client.
      candidates: i32[n, s], secrets that nobody was given.
      before: what the model before training says.
      secrets_before: f64[m], log-likelihoods of secrets, likewise.
      delta: of the guarantee that canaries test; 0 without one.
    """

    data: Data
    adapted: peft.Adapted
    task: ffm.Task
    rows: int
    candidates: np.ndarray
    before: Told
    secrets_before: np.ndarray
    delta: float

    def of(self, delta: Tree, backbone: Tree) -> Measured:
        """Measures a model.

        Args:
          delta: the trainable tree.
          backbone: the frozen one.
        """
        parts, data = (delta, backbone), self.data
        planted = data.canaries.is_planted
        now = told(self.task, parts, data, self.rows)
        own, others = self.of_canaries(*parts)
        bits = exposure(own, others)
        found = membership(
            now.members - self.before.members, now.outsiders - self.before.outsiders
        )
        by_loss = membership(now.members, now.outsiders)
        refuted = one_run_epsilon(own - self.secrets_before, planted, delta=self.delta)
        scores = {
            "loss": now.learned["loss"],
            "accuracy": now.learned["accuracy"],
            "exposure": float(bits[planted].mean()),
            "left_out": float(bits[~planted].mean()),
            "area": found.area.value,
            "power": found.power.value,
            "area_of_loss": by_loss.area.value,
            "refuted": refuted.epsilon,
        }
        exposures = {
            "planted": bits[planted].tolist(),
            "left_out": bits[~planted].tolist(),
        }
        return Measured(scores, exposures, (found.n_members, found.n_others))

    def of_canaries(self, delta: Tree, backbone: Tree) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihoods of each secret, f64[m], and of the candidates, f64[m, n].

        Args:
          delta: the trainable tree.
          backbone: the frozen one.
        """
        chances = log_chances(self.adapted, delta, backbone, self.data.secrets)
        own = of_secrets(chances, self.data.canaries.secrets[:, None])
        return own[:, 0], of_secrets(chances, self.candidates[None])


def watch(
    run: study.Run,
    data: Data,
    adapted: peft.Adapted,
    epsilon: float | None = None,
) -> Watch:
    """Prepares what is measured of models of a seed.

    Args:
      run: has the seed of the candidates, and their number.
      data: of the seed.
      adapted: the model before training.
      epsilon: that was accounted for; None: nothing was.
    """
    config, task = run.config, tasks.token_classification(adapted)
    parts = (adapted.delta, adapted.backbone)
    made = Watch(
        data=data,
        adapted=adapted,
        task=task,
        rows=config.rows,
        candidates=candidate_secrets(data.canaries, config.candidates, seed=run.seed),
        before=told(task, parts, data, config.rows),
        secrets_before=np.zeros(0),
        delta=promised(epsilon, config.delta).delta,
    )
    own, _ = made.of_canaries(*parts)
    return made._replace(secrets_before=own)


def promised(epsilon: float | None, delta: float) -> Promise:
    """What a run says of one client's data, replaced by others: what canaries test.

    Args:
      epsilon: that was accounted for, of a client that is there or not; None: nothing.
      delta: of that guarantee.
    """
    if epsilon is None:
        return Promise(epsilon=None, delta=0.0)
    return for_a_replaced_client(epsilon, delta, LESS)


class Watching(callbacks.Callback):
    """Measures the server's model between rounds, as columns `eval_...`."""

    def __init__(self, watched: Watch):
        self.watched = watched
        self.simulator: Any = None
        self.last: Measured | None = None

    def begin(self, simulator: Any, state: Any, metrics: Any, last: int) -> None:
        """Keeps the simulator, which knows the model."""
        self.simulator = simulator

    def __call__(self, round: int, state: Any, metrics: Any) -> dict[str, float]:
        """Measures."""
        self.last = self.watched.of(*self.simulator.model(state))
        return as_columns(self.last)


def as_columns(found: Measured) -> dict[str, float]:
    """Scores as columns of a curve.

    Args:
      found: of a model.
    """
    return {f"eval_{name}": value for name, value in found.scores.items()}
