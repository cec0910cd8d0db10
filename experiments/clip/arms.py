"""The arms of the study of towers: what is trained behind them, on what names."""

import functools
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks
from fedjax_fm.algorithms import fedclip
from fedjax_fm.datasets.packaged.emoji import CATEGORIES
from fedjax_fm.experiments.clip.towers import Pairs, Towers

PROJECTIONS = ["visual_projection", "text_projection"]
METHODS = {
    "image": peft.attention_adapter(),
    "both": peft.attention_adapter(PROJECTIONS),
    "projections": peft.head(PROJECTIONS),
}
CLASSES = np.arange(len(CATEGORIES))[:, None]


def joined_towers(run: study.Run) -> nnx.Module:
    """The towers with projections that the public pairs have trained, once a seed."""
    config, found = run.config, run.data[0]
    towers = random_towers(run)
    adapted = peft.apply(towers, METHODS["projections"])
    features = tasks.pair_features(adapted)
    how = {"local_steps": config.public_steps, "batch_size": config.batch_size}
    method = fedclip(features, optax.adam(1e-3), **how)
    public = ffm.Population.from_clients([found.public])
    one = ffm.Simulator(
        method, public, backbone=adapted.backbone, cohort_size=1, seed=run.seed
    )
    state, _ = one.run(one.init(adapted.delta), 1)
    return adapted.model(state.delta)


def random_towers(run: study.Run) -> nnx.Module:
    """The towers with projections at their initial values."""
    found = run.data[0]
    width = found.public["pixel_values"].shape[1]
    return Towers(found.names, width, run.config.space, nnx.Rngs(run.seed))


def scores_of(adapted: peft.Adapted, delta: Any, found: Pairs) -> dict[str, float]:
    """Accuracy by names on both tests."""
    task = tasks.zero_shot(adapted, CLASSES)
    parts = {"accuracy": found.test, "seen": found.seen}
    each = {
        name: ffm.evaluate(task, delta, adapted.backbone, test)["accuracy"]
        for name, test in parts.items()
    }
    return {name: float(np.mean(score)) for name, score in each.items()}


def mean(scores: list[dict[str, float]]) -> dict[str, float]:
    """Over vendors."""
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}


def tuned(run: study.Run, part: str, shuffle: bool = False) -> dict[str, float]:
    """FedCLIP of one of `METHODS`."""
    config, scores = run.config, []
    towers = run.once("towers", functools.partial(joined_towers, run))
    for found in run.data:
        adapted = peft.apply(towers, METHODS[part], jax.random.key(run.seed))
        adamw = optax.adamw(run["learning_rate"], b2=0.98, eps=1e-6, weight_decay=0.2)
        how = {"epochs": config.epochs, "batch_size": config.batch_size}
        method = fedclip(tasks.pair_features(adapted), adamw, **how)
        clients = found.clients
        if shuffle:
            ids = np.random.default_rng(run.seed).permutation(
                clients.arrays["input_ids"]
            )
            arrays = {**clients.arrays, "input_ids": ids}
            clients = ffm.Population.from_arrays(arrays, clients.offsets)
        done = run.simulate(
            method,
            clients,
            adapted.delta,
            config.rounds,
            backbone=adapted.backbone,
            cohort_size=clients.n_clients,
        )
        scores.append(scores_of(adapted, done.state.delta, found))
    return mean(scores)


def zero_shot(run: study.Run, random: bool = False) -> dict[str, float]:
    """By names alone, behind projections of public pairs or random ones."""
    make = random_towers if random else joined_towers
    towers = run.once(f"towers {random}" if random else "towers", lambda: make(run))
    adapted = peft.apply(towers, METHODS["image"])
    return mean([scores_of(adapted, adapted.delta, found) for found in run.data])
