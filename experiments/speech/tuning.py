"""What the arms train of Whisper's encoder, and how each is judged."""

import functools
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft, study, tasks
from fedjax_fm.algorithms import local_only
from fedjax_fm.study.run import Simulated

WHISPER = "openai/whisper-base"


def methods(rank: int) -> dict[str, peft.Method]:
    """By the names of the arms; all train the head, which is new."""
    return {
        "lora": peft.lora(rank, 2.0 * rank, targets=["q_proj", "v_proj"]),
        "full": peft.full(),
        "head": peft.head(),
    }


@functools.lru_cache(maxsize=2)
def encoder(n_classes: int, seed: int) -> nnx.Module:
    """Whisper's encoder with a new head."""
    return models.from_pretrained(WHISPER, num_labels=n_classes, seed=seed)


def tuned(
    run: study.Run, method: str, alone: bool = False, rounds: int | None = None
) -> dict[str, float]:
    """One way of tuning, by all clients together or by each of them alone."""
    config, data = run.config, run.data
    whole = encoder(len(config.numbers), run.seed)
    key = jax.random.key(run.seed)
    adapted = peft.apply(whole, methods(config.rank)[method], key)
    task, walk = tasks.classification(adapted), study.walk(config)
    rate = 0.0 if rounds == 0 else run["learning_rate"]
    train = local_only if alone else ffm.fedavg
    algorithm = train(task, optax.adam(rate), **walk)
    found = run.simulate(algorithm, data.clients, adapted, rounds)
    return {
        "accuracy": accuracy(found, task, data.languages, data.test, alone=alone),
        "people": accuracy(found, task, data.languages, data.people, alone=alone),
    }


def accuracy(
    found: Simulated,
    task: ffm.Task,
    languages: list[str],
    tests: dict[str, Any],
    *,
    alone: bool,
) -> float:
    """The mean over languages; of clients alone, each in its own language."""
    if alone:
        asked = [(found.model(k), tests[own]) for k, own in enumerate(languages)]
    else:
        asked = [(found.model(), test) for test in tests.values()]
    scores = []
    for (delta, backbone), test in asked:
        each = ffm.evaluate(task, delta, backbone, test, batch_size=56)
        scores.append(float(np.mean(each["accuracy"])))
    return float(np.mean(scores))
