"""The arms: each method on the same perceptron, clients and rounds."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, study, trees
from fedjax_fm.algorithms.fedpm import masked, signed_constants, threshold_masks
from fedjax_fm.algorithms.pruning import FirstStage
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.shared.perceptron import SMALL, TASK, first_weights

# A second for 125,000 bytes each way, and 50 ms a round: what PruneFL minimises.
TIME = algorithms.RoundTime(constant=0.05, entry=2 * 4 / 125e3)


def sgd(run: study.Run) -> optax.GradientTransformation:
    """Of the clients.

    Args:
      run: has the rate.
    """
    return optax.sgd(run["rate"])


def first(run: study.Run, width: float = 1.0) -> Any:
    """The weights that a seed begins with.

    Args:
      run: of a seed.
      width: share of the hidden units.
    """
    units = max(1, round(width * run.config.width))
    return first_weights(units, jax.random.key(run.seed))


def trained(run: study.Run, algorithm: Any, delta: Any, **how: Any) -> study.Simulated:
    """The rounds of a method.

    Args:
      run: of a seed.
      algorithm: the method.
      delta: where it begins.
      **how: more for `run.simulate`; `rounds` if they are others than the study's,
        `shuffle` for labels that are permuted.
    """
    clients = run.data.clients
    if how.pop("shuffle", False):
        arrays = study.shuffled_labels(clients.arrays, run.seed)
        clients = ffm.Population.from_arrays(arrays, clients.offsets)
    rounds = how.pop("rounds", run.config.rounds)
    given = {"task": TASK, "test": run.data.test, **SMALL, **how}
    cohort = min(run.config.cohort, clients.n_clients)
    return run.simulate(algorithm, clients, delta, rounds, cohort_size=cohort, **given)


def scores(
    run: study.Run, found: study.Simulated, task: ffm.Task = TASK
) -> dict[str, float]:
    """On the common test, on the clients' own, and the share of weights that travels.

    Args:
      run: of a seed.
      found: the rounds.
      task: what is computed.
    """
    own = run.score_clients(found, task, run.data.own, "accuracy")
    density = found.metrics.get("density", np.ones(1))
    return {
        "accuracy": found.scores["accuracy"],
        "own": float(np.nanmean(own)),
        "density": float(density[-1]),
    }


def fedavg(width: float = 1.0, **how: Any) -> Callable[[study.Run], dict[str, float]]:
    """An arm: FedAvg of the whole network, or of one that is narrower.

    Args:
      width: share of the hidden units.
      **how: of `trained`.
    """

    def arm(run: study.Run) -> dict[str, float]:
        delta = first(run, width)

        def start() -> study.Simulated:
            algorithm = ffm.fedavg(TASK, sgd(run), **study.walk(run.config))
            return trained(run, algorithm, delta, **how)

        found = run.simulate_once(("fedavg", width, run["rate"], *how), start)
        return scores(run, found)

    return arm


def _prunefl(run: study.Run) -> study.Simulated:
    """Both stages; the first one at the first client."""
    how: dict[str, Any] = {
        "time": TIME,
        "every": run.config.every,
        **study.walk(run.config),
    }
    rule = (TASK, sgd(run))

    def first_stage() -> FirstStage:
        clients = run.data.clients
        rows = slice(*clients.offsets[:2])
        mine = {name: np.asarray(x)[rows] for name, x in clients.arrays.items()}
        limits: dict[str, Any] = {
            "threshold": 1.5 / 10,
            "most_rounds": 20 * run.config.every,
        }
        return algorithms.prunefl_first_stage(*rule, first(run), mine, **how, **limits)

    stage = run.once(("first stage", run["rate"]), first_stage)
    run.sent(up=stage.uplink_bytes, down=stage.downlink_bytes)

    def start() -> study.Simulated:
        algorithm = algorithms.prunefl(*rule, masks=stage.masks, **how)
        return trained(run, algorithm, stage.delta)

    return run.simulate_once(("prunefl", run["rate"]), start)


def prunefl(run: study.Run) -> dict[str, float]:
    """An arm: PruneFL."""
    return scores(run, _prunefl(run))


def fedavg_in_time(run: study.Run) -> dict[str, float]:
    """An arm: FedAvg for as many estimated seconds as PruneFL takes at its rate."""
    found = run.once(("prunefl in time", run["rate"]), lambda: _prunefl(run))
    seconds = float(found.metrics["estimated_seconds"].sum())
    delta = first(run)
    each = TIME.constant + TIME.of_leaf("") * trees.size(delta)
    rounds = max(1, min(run.config.rounds, int(seconds / each)))
    run.notes["rounds"], run.notes["seconds"] = rounds, seconds
    algorithm = ffm.fedavg(TASK, sgd(run), **study.walk(run.config))
    return scores(run, trained(run, algorithm, delta, rounds=rounds))


def lotteryfl(run: study.Run) -> dict[str, float]:
    """An arm: LotteryFL, judged on the common test by the server's model."""

    def start() -> study.Simulated:
        limits: dict[str, Any] = {"threshold": 0.5, "target_density": run.config.ticket}
        algorithm = algorithms.lotteryfl(
            TASK, sgd(run), **limits, **study.walk(run.config)
        )
        # the common test is the server's model's; clients have their own
        return trained(run, algorithm, first(run), test=run.data.own)

    found = run.simulate_once(("lotteryfl", run["rate"]), start)
    server = ffm.evaluate(TASK, found.state.delta, (), run.data.test)
    scored = found._replace(scores=means(server))
    return scores(run, scored)


def on_own(
    arm: Callable[[study.Run], dict[str, float]],
) -> Callable[[study.Run], dict[str, float]]:
    """The same arm, whose score is that on the clients' own tests.

    Args:
      arm: gives both.
    """

    def judged(run: study.Run) -> dict[str, float]:
        found = arm(run)
        return {**found, "accuracy": found["own"]}

    return judged


def fedpm(run: study.Run) -> dict[str, float]:
    """An arm: FedPM, whose network is that of theta above 1/2."""
    key = jax.random.key(run.seed)
    shapes = jax.eval_shape(lambda: first(run))
    weights = signed_constants(shapes, key, gain=2**0.5)
    half = jax.tree.map(lambda x: 0.5 * np.ones(x.shape, np.float32), shapes)
    adam = optax.adam(run["rate"])
    algorithm = algorithms.fedpm(TASK, adam, softening=1e-3, **study.walk(run.config))
    found = trained(run, algorithm, half, backbone=weights, test=None)
    network = masked(weights, threshold_masks(found.state.delta))
    of_all = means(ffm.evaluate(TASK, network, (), run.data.test))
    of_own = means(ffm.evaluate(TASK, network, (), run.data.own.arrays))
    density = float(found.metrics["density"][-1])
    found = {"accuracy": of_all["accuracy"], "own": of_own["accuracy"]}
    return {**found, "density": density}


def untrained(run: study.Run) -> dict[str, float]:
    """An arm: the network as it begins."""
    found = means(ffm.evaluate(TASK, first(run), (), run.data.test))
    return {"accuracy": found["accuracy"]}
