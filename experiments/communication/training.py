"""The compressed methods, and what one reached within budgets of bytes and seconds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels, study
from fedjax_fm.experiments.shared.controls import as_it_begins


def averaged(name: str, **how: Any) -> Callable[[study.Run], ffm.Algorithm]:
    """A method of local steps."""

    def make(run: study.Run) -> ffm.Algorithm:
        given = {**study.walk(run.config), **how}
        if name == "fedobd":  # blocks are leaves of the net, layers of MiniLM
            is_net = run.config.task == "image"
            given |= {"blocks": str} if is_net else {"stacked": r"encoder\.layer\."}
            given["dropped"] = run.config.dropped
        factory = getattr(algorithms, name)
        return factory(run.data.task, optax.sgd(run["rate"]), **given)

    return make


def by_gradient(
    name: str, kind: str = "ternary"
) -> Callable[[study.Run], ffm.Algorithm]:
    """A method of gradients, with a channel of its own: "top_k" or "ternary"."""

    def make(run: study.Run) -> ffm.Algorithm:
        given: dict[str, Any] = study.walk(run.config)
        coarse = channels.ternary()
        if kind == "top_k":
            coarse = channels.top_k(run.config.kept)
        if name == "soteriafl":
            whole = given["local_steps"] * given["batch_size"]
            given = {"clip_norm": 1.0, "noise_multiplier": 0.0, "batch_size": whole}
        given["client_channel" if name == "fedlin" else "channel"] = coarse
        return getattr(algorithms, name)(run.data.task, run["rate"], **given)

    return make


def trained(
    run: study.Run,
    make: Callable[[study.Run], ffm.Algorithm],
    remembers: bool = False,
    longer: bool = False,
) -> dict[str, float]:
    """One method.

    Args:
      run: of the arm.
      make: the method.
      remembers: whether its uplink is top-k with error feedback.
      longer: whether it goes on for `more_rounds` times as many rounds.
    """
    config, made = run.config, run.data
    rounds = config.planned("rounds")
    cohort = min(config.planned("cohort"), len(made.clients))
    uplink = channels.error_feedback(channels.top_k(config.kept))
    run.simulate(
        make(run),
        made.clients,
        made.delta,
        rounds * (config.more_rounds if longer else 1),
        backbone=made.backbone,
        cohort_size=cohort,
        uplink=uplink if remembers else None,
        task=made.task,
        test=made.test,
        every=max(1, rounds // 30),
    )
    return scores(run, rounds, 8 * ffm.trees.size(made.delta), cohort)


def untrained(run: study.Run) -> dict[str, float]:
    """The model as it begins."""
    made = run.data
    accuracy = as_it_begins(made.task, made.delta, made.backbone, made.test)
    return {"accuracy": accuracy}


def scores(run: study.Run, rounds: int, plain: int, cohort: int) -> dict[str, float]:
    """Accuracy within budgets, and what the target costs, from the curve.

    Args:
      run: after its simulation.
      rounds: of FedAvg.
      plain: bytes of one client of FedAvg in a round, both ways.
      cohort: clients of a round.
    """
    config = run.config
    names = ("round", "eval_accuracy", "uplink_bytes", "downlink_bytes")
    columns = [np.array([row[name] for row in run.curve]) for name in names]
    number, accuracy, up, down = columns
    both, most = up + down, config.share * rounds * cohort * plain

    def within(cost: np.ndarray, budget: float) -> float:
        return float(accuracy[max(0, np.sum(cost <= budget) - 1)])

    def seconds(megabits: float, n: Any, bytes_each: Any) -> Any:
        steps = n * config.local_steps * config.step_seconds
        return steps + 8 * bytes_each / (1e6 * megabits)

    found = {"accuracy": within(both, most), "rounds": within(number, rounds)}
    costs = {"up": up / 1e6, "both": both / 1e6}
    for name, megabits in (("slow", 1.0), ("fast", 100.0)):
        took = seconds(megabits, number, both / cohort)
        whole = seconds(megabits, rounds, rounds * plain)
        found[name], costs[name] = within(took, config.share * whole), took
    if (reached := accuracy >= config.planned("target")).any():
        first = int(reached.argmax())
        found |= {f"to_{name}": float(cost[first]) for name, cost in costs.items()}
    return found
