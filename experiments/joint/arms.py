"""The arms: all rates of a pair side by side, then a run with the best."""

from typing import Any, NamedTuple

import fedjax_fm as ffm
from fedjax_fm import peft, study, systems, tasks, trees
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.joint.parts import adapted_by, rates_of
from fedjax_fm.experiments.joint.ways import (
    MIXED,
    STEPS,
    WAYS,
    algorithm_of,
    by_evaluations,
    uplink_of,
)
from fedjax_fm.experiments.shared.budgets import at_most, sent
from fedjax_fm.experiments.shared.controls import as_it_begins
from fedjax_fm.experiments.shared.side_by_side import finite, scores_by_rate
from fedjax_fm.experiments.shared.words import with_shuffled_labels
from fedjax_fm.study.judged import joined
from fedjax_fm.types import Algorithm, Task

MEGA = 1e6


class Pair(NamedTuple):
    """A part and a way to send it.

    Attributes:
      part, way: their names.
      adapted: the model.
      task: its loss.
      rounds: in which the local steps of the configuration are taken.
    """

    part: str
    way: str
    adapted: peft.Adapted
    task: Task
    rounds: int


def pair_of(run: study.Run, part: str, way: str) -> Pair:
    """The pair on a seed's model.

    Args:
      run: of the arm.
      part: a key of `parts.PARTS`.
      way: a key of `ways.WAYS`.
    """
    adapted = adapted_by(run, part, max(MIXED) if way == "mixed" else None)
    return Pair(
        part=part,
        way=way,
        adapted=adapted,
        task=tasks.token_classification(adapted),
        rounds=run.config.steps // WAYS[way].local_steps,
    )


def trained(
    run: study.Run, part: str, way: str, shuffle: bool = False
) -> dict[str, float]:
    """One pair; while tuning at all rates at once.

    Args:
      run: of the arm.
      part: a key of `parts.PARTS`.
      way: a key of `ways.WAYS`.
      shuffle: permutes the labels of the clients' words.
    """
    pair = pair_of(run, part, way)
    if run.is_tuning:
        swept = run.once(("sweep", part, way), lambda: sweep(run, pair))
        return {"accuracy": finite(swept[run["learning_rate"]])}
    clients = run.data.train
    if shuffle:
        clients = with_shuffled_labels(clients, run.seed)
    found = run.simulate(
        method_of(run, pair, run["learning_rate"]),
        clients,
        pair.adapted,
        pair.rounds,
        task=pair.task,
        test=joined(run.data.own),
        every=1,
        uplink=uplink_of(run.config, way),
        asks_memory=True,
    )
    memory = float("nan") if found.memory is None else found.memory / MEGA
    spent = {"memory": memory, **costs(run, pair)}
    return {"accuracy": found.scores["accuracy"], **spent}


def method_of(run: study.Run, pair: Pair, rate: Any) -> Algorithm:
    """The algorithm of a pair.

    Args:
      run: of the arm.
      pair: of the arm.
      rate: a number or traced.
    """
    make = by_evaluations if pair.part == "zero" else algorithm_of
    return make(run, pair.task, pair.way, rate)


def sweep(run: study.Run, pair: Pair) -> dict[float, float]:
    """{rate: accuracy} of a pair, all rates as one program.

    Args:
      run: of the arm.
      pair: of the arm.

    Returns:
      NaN at a rate at which training was not finite.
    """
    config, adapted, own = run.config, pair.adapted, joined(run.data.own)

    def algorithm(learning_rate: Any) -> Algorithm:
        return method_of(run, pair, learning_rate)

    def accuracy(simulator: ffm.Simulator, state: ffm.SimulationState) -> float:
        judged = ffm.evaluate(pair.task, *simulator.model(state), own)
        return float(means(judged)["accuracy"])

    return scores_by_rate(
        run,
        algorithm,
        getattr(config, rates_of(pair.part)),
        adapted.delta,
        pair.rounds,
        score=accuracy,
        backbone=adapted.backbone,
        cohort_size=config.clients,
        uplink=uplink_of(config, pair.way),
    )


def costs(run: study.Run, pair: Pair) -> dict[str, float]:
    """What a run cost, and what it had reached within budgets.

    Args:
      run: after its simulation.
      pair: of the arm.

    Returns:
      Scores; without "to_target" where that was not reached.
    """
    config, curve = run.config, run.curve
    budget = config.share * of_lora(run)
    found = {
        "at_bytes": at_most(curve, budget, "eval_accuracy", begins(run, pair)),
        "megabytes": sent(curve[-1]) / MEGA,
        "seconds": curve[-1]["seconds"],
        "joules": joules_of(run),
    }
    reached = [row for row in curve if row["eval_accuracy"] >= config.target]
    if reached:
        found["to_target"] = sent(reached[0]) / MEGA
    return found


def begins(run: study.Run, pair: Pair) -> float:
    """The accuracy before training.

    Args:
      run: of the arm.
      pair: of the arm.
    """
    adapted, own = pair.adapted, joined(run.data.own)
    return as_it_begins(pair.task, adapted.delta, adapted.backbone, own)


def of_lora(run: study.Run) -> int:
    """Bytes that LoRA sends uncompressed in all its rounds, both ways.

    Args:
      run: of the arm.
    """
    each = trees.nbytes(adapted_by(run, "lora").delta)
    rounds = run.config.steps // STEPS
    return 2 * rounds * run.config.clients * each


def joules_of(run: study.Run) -> float:
    """Joules of the clients on the configuration's machines, predicted.

    Args:
      run: after its simulation.
    """
    where = systems.scenario(device=run.config.device, link=run.config.link)
    energy = systems.cost_of(run.counts, where).energy
    return energy.compute + energy.radio


def untrained(run: study.Run) -> dict[str, float]:
    """The model before training."""
    return {"accuracy": begins(run, pair_of(run, "head", "plain"))}
