"""Runs the quickstart's arms one after the other; an arm that is done is never computed again."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console

from fedjax_fm import models, trees
from fedjax_fm.engine import SimulationState, Simulator
from fedjax_fm.evaluation import Evaluator
from fedjax_fm.experiments.quickstart import arms
from fedjax_fm.experiments.quickstart.config import Config
from fedjax_fm.experiments.quickstart.head import features_of, fit_best
from fedjax_fm.experiments.quickstart.report import write_report
from fedjax_fm.runs import RunFolder, run_rounds
from fedjax_fm.runs.arms import Outcome, compute_once
from fedjax_fm.runs.provenance import environment
from fedjax_fm.runs.seeds import each_seed
from fedjax_fm.types import Tree


def run(config: Config, folder: RunFolder, console: Console) -> None:
    """The whole study in `folder`; with several seeds each has a run folder of its own inside it."""
    for one, place in each_seed(config, folder, console):
        run_seed(one, place, console)
    console.print(f"\nreport: {write_report(folder)}", highlight=False, soft_wrap=True)


def run_seed(config: Config, folder: RunFolder, console: Console) -> None:
    """All arms for one seed."""
    started = time.perf_counter()
    with console.status("loading text and weights …"):
        setup = arms.setup(config)
    if not folder.has("provenance.json"):
        folder.write_json("provenance.json", _provenance(setup))
    for name, arm in ARMS.items():
        _, found = compute_once(folder, name, lambda arm=arm: arm(setup, folder, console), console)
        console.print(f"{name}: {100 * found['test'].mean():.1f} % on the test set", highlight=False, soft_wrap=True)
    console.print(
        f"all arms done, {time.perf_counter() - started:.0f} s in this session", highlight=False, soft_wrap=True
    )


def _provenance(setup: arms.Setup) -> dict[str, Any]:
    data, config = setup.data, setup.config
    return {
        **environment(),
        "seed": config.seed,
        "data": data.provenance,
        "weights": models.provenance(config.model),
        "splits": {
            "training clients": len(data.train),
            "training sentences": sum(map(len, data.train)),
            "their own test sentences": sum(map(len, data.local_test)),
            "validation sentences": sum(map(len, data.validation)),
            "held-out clients' sentences": sum(map(len, data.held_out)),
            "central test sentences": len(data.test),
        },
        "client_domains": [data.client_domain(rows) for rows in data.train],
        "client_sizes": [len(rows) for rows in data.local_test],
        "held_out_sizes": [len(rows) for rows in data.held_out],
        "test_domains": [str(name) for name in data.domain[data.test]],
        "trainable_parameters": trees.size(setup.delta),
        "frozen_parameters": trees.size(setup.backbone),
        "majority_class_accuracy": float(max(np.bincount(data.arrays["label"][data.test])) / len(data.test)),
    }


def _looks(setup: arms.Setup) -> np.ndarray:
    """The fixed subset that a run looks at: validation clients' sentences, the same ones at every look."""
    rows = np.concatenate(setup.data.validation)
    return np.random.default_rng(setup.config.seed).permutation(rows)[: setup.config.eval_subset]


def _watch(setup: arms.Setup, simulator: Simulator) -> Callable[[SimulationState], dict[str, float]]:
    arrays = setup.data.take(_looks(setup))

    def evaluate(state: SimulationState) -> dict[str, float]:
        results = setup.evaluator((state.delta, simulator.backbone), arrays)
        return {"eval_accuracy": results.accuracy, "eval_loss": float(results.loss.mean())}

    return evaluate


def _correct(setup: arms.Setup, params: Tree, rows: np.ndarray, evaluator: Evaluator | None = None) -> np.ndarray:
    return (evaluator or setup.evaluator)(params, setup.data.take(rows)).correct


def _train(setup: arms.Setup, simulator: Simulator, rounds: int, name: str, folder: RunFolder, console: Console, **how):
    state = run_rounds(
        simulator,
        setup.delta,
        rounds,
        folder,
        label=name,
        console=console,
        evaluate=None if name == "local only" else _watch(setup, simulator),
        **({"evaluate_every": setup.config.eval_every} | how),
    )
    last = folder.metrics()[-1]
    return state, {
        "rounds": rounds,
        "uplink_bytes": last["uplink_bytes_total"],
        "downlink_bytes": last["downlink_bytes_total"],
        "samples": arms.samples(setup.config),
    }


def _federated(setup: arms.Setup, folder: RunFolder, console: Console) -> Outcome:
    config, data = setup.config, setup.data
    frozen = jax.tree.map(np.array, setup.backbone)
    simulator = arms.federated(setup, config.learning_rate, arms.uplink(config))
    state, numbers = _train(setup, simulator, config.rounds, "federated", folder, console)
    numbers["frozen_identical"] = jax.tree.all(jax.tree.map(np.array_equal, frozen, simulator.backbone))
    numbers["bytes_per_client_up"], numbers["bytes_per_client_down"] = simulator.bytes_per_client(state)
    params = (state.delta, simulator.backbone)
    console.print("federated: whole test set, every client, held-out clients …", highlight=False, soft_wrap=True)
    return numbers, {
        "test": _correct(setup, params, data.test),
        "local": _correct(setup, params, np.concatenate(data.local_test)),
        "held_out": _correct(setup, params, np.concatenate(data.held_out)),
    }


def _uncompressed(setup: arms.Setup, folder: RunFolder, console: Console) -> Outcome:
    config = setup.config
    simulator = arms.federated(setup, config.uncompressed_learning_rate, None)
    place = folder.below("arms/uncompressed")
    state, numbers = _train(setup, simulator, config.rounds, "uncompressed", place, console)
    return numbers, {"test": _correct(setup, (state.delta, simulator.backbone), setup.data.test)}


def _centralised(setup: arms.Setup, folder: RunFolder, console: Console) -> Outcome:
    config = setup.config
    simulator, rounds = arms.centralised(setup, config.centralised_learning_rate)
    # As many sentences between two looks as in the federated run.
    block = max(1, config.cohort * config.local_steps * config.batch_size // config.centralised_batch)
    place = folder.below("arms/centralised")
    state, numbers = _train(
        setup, simulator, rounds, "centralised", place, console,
        evaluate_every=block * config.eval_every,
    )  # fmt: skip
    # Nothing travels where all data lie in one place.
    numbers |= {"uplink_bytes": 0, "downlink_bytes": 0}
    return numbers, {"test": _correct(setup, (state.delta, simulator.backbone), setup.data.test)}


def _local_only(setup: arms.Setup, folder: RunFolder, console: Console) -> Outcome:
    """Every client's own model on its own test sentences, and on a share of the central test: each test sentence is
    judged by the model of one client, drawn at random, so the mean is that of a random client's model."""
    simulator, rounds = arms.alone(setup, setup.config.local_only_learning_rate)
    state, numbers = _train(
        setup, simulator, rounds, "local only", folder.below("arms/local_only"), console, evaluate_every=1
    )
    data = setup.data
    small = Evaluator(setup.evaluator.logits_fn, batch_size=16, bucket=setup.config.max_length)
    dealt = np.random.default_rng(setup.config.seed).integers(len(data.train), size=len(data.test))
    test, local = np.zeros(len(data.test), bool), []
    for client in range(len(data.train)):
        params = (arms.personal(state.rounds.clients, client), simulator.backbone)
        mine = dealt == client
        if mine.any():
            test[mine] = _correct(setup, params, data.test[mine], small)
        local.append(_correct(setup, params, data.local_test[client], small))
    return numbers, {"test": test, "local": np.concatenate(local)}


def _head(setup: arms.Setup, folder: RunFolder, console: Console) -> Outcome:
    """The trained head, and the control that must fail: the same with the training labels shuffled."""
    config, data = setup.config, setup.data
    random = np.random.default_rng(config.seed)
    train = random.permutation(np.concatenate(data.train))[: config.head_examples]
    validation = random.permutation(np.concatenate(data.validation))[: config.head_examples]
    with console.status(f"features of {len(train) + len(validation) + len(data.test)} sentences …"):
        features = {name: features_of(setup.model, data, rows) for name, rows in
                    {"train": train, "validation": validation, "test": data.test}.items()}  # fmt: skip
    labels = data.arrays["label"]
    head = fit_best((features["train"], labels[train]), (features["validation"], labels[validation]))
    shuffled = fit_best(
        (features["train"], random.permutation(labels[train])), (features["validation"], labels[validation])
    )
    return (
        {"examples": len(train), "penalty": head.penalty},
        {
            "test": head.correct(features["test"], labels[data.test]),
            "shuffled_labels": shuffled.correct(features["test"], labels[data.test]),
        },
    )


ARMS = {
    "federated": _federated,
    "uncompressed": _uncompressed,
    "head_only": _head,
    "local_only": _local_only,
    "centralised": _centralised,
}
