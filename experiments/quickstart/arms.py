"""Federated, in one place, alone: what the arms train, and how they are scored."""

from typing import Any

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import channels, study, trees
from fedjax_fm.algorithms import local_only
from fedjax_fm.callbacks.looks import worst_decile
from fedjax_fm.experiments.quickstart.clients import Data, in_features
from fedjax_fm.study.judged import joined, judged

HOW = {"batch_size": 16}  # of evaluations: a client has few sentences


def wires(config: Any) -> dict[str, Any]:
    """The channels of the compressed arm; the study says why these.

    Args:
      config: of the study.
    """
    largest = channels.top_k(config.top_k)
    codes = channels.quantize(config.bits_up, norm="max")
    up = channels.error_feedback(channels.chain(largest, codes))
    return {"uplink": up, "downlink": channels.quantize(config.bits_down, norm="max")}


def federated(run: study.Run, compressed: bool = True) -> dict[str, float]:
    """LoRA by FedAvg, with or without channels."""
    config, data = run.config, run.data
    optimizer = optax.adam(run["learning_rate"])
    found = simulate(
        run,
        data,
        ffm.fedavg(data.task, optimizer, **study.walk(config)),
        rounds=rounds_of(run),
        cohort_size=min(config.cohort, len(data.train)),
        **(wires(config) if compressed else {}),
    )
    up, down = found.simulator.bytes_per_client(found.state)
    whole = trees.nbytes(data.adapted.delta)
    fewer = {"fewer_up": whole / up, "fewer_both": 2 * whole / (up + down)}
    return {**scores(run, data, found), **fewer}


def centralised(
    run: study.Run, head: bool = False, shuffle: bool = False
) -> dict[str, float]:
    """One place has all training sentences; a round is a step of Adam."""
    config, data = run.config, in_features(run) if head else run.data
    train = joined(data.train)
    if shuffle:
        train = study.shuffled_labels(train, run.seed)
    size, cohort = config.centralised_batch, config.cohort
    examples = rounds_of(run) * cohort * config.local_steps * config.batch_size
    steps = max(1, round(examples / size))
    adam = optax.adam(run["learning_rate"])
    found = simulate(
        run,
        data._replace(train=[train]),
        ffm.fedavg(data.task, optax.sgd(1.0), adam, local_steps=1, batch_size=size),
        rounds=steps,
        every=max(1, steps // (config.rounds // config.every)),
        travels=False,
    )
    return scores(run, data, found)


def alone(run: study.Run) -> dict[str, float]:
    """Every client alone, for as many rounds as one takes part in on average."""
    config, data = run.config, run.data
    adam = optax.adam(run["learning_rate"])
    algorithm = local_only(data.task, adam, **study.walk(config))
    share = min(config.cohort / len(data.train), 1)
    rounds = max(1, round(rounds_of(run) * share))
    found = simulate(run, data, algorithm, rounds=rounds, test=None)
    return scores(run, data, found)


def untrained(run: study.Run) -> dict[str, float]:
    """The model that all arms start from."""
    data, sgd = run.data, optax.sgd(0.0)
    algorithm = ffm.fedavg(data.task, sgd, local_steps=1, batch_size=1)
    found = simulate(run, data, algorithm, rounds=0, cohort_size=1, test=None)
    return scores(run, data, found)


def rounds_of(run: study.Run) -> int:
    """Rounds of the run, which may be fewer while tuning."""
    return min(run.rounds, run.config.rounds)


def simulate(
    run: study.Run, data: Data, algorithm: ffm.Algorithm, rounds: int, **how: Any
) -> study.Simulated:
    """A run over these clients that is evaluated on a part of the central test."""
    looks = {name: array[: run.config.looked_at] for name, array in data.test.items()}
    more = {"every": run.config.every, "test": looks, "task": data.task, **HOW, **how}
    keep = rounds > 0
    return run.simulate(algorithm, data.train, data.adapted, rounds, keep=keep, **more)


def scores(run: study.Run, data: Data, found: study.Simulated) -> dict[str, float]:
    """Accuracy on all test sets; that of each client is shown in the report."""
    task, name = data.task, "accuracy"
    # The test's order is random, so that a client that is alone judges a random share.
    rows = np.arange(len(data.test["label"]))
    dealt = [
        {column: array[part] for column, array in data.test.items()}
        for part in np.array_split(rows, len(data.train))
        if len(part)
    ]
    correct, counts = judged(found, task, dealt, name, **HOW)
    own = run.score_clients(found, task, data.own, name, **HOW)
    held_out, _ = judged(found, task, data.held_out, name, **HOW)
    return {
        "accuracy": float(np.average(correct, weights=counts)),
        "own": float(np.nanmean(own)),
        "worst": worst_decile(own, "accuracy"),
        "held_out": float(held_out.mean()),
    }
