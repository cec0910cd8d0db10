"""A bag of words, trained on what a teacher says or on labels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import study, tasks
from fedjax_fm.evaluation import means
from fedjax_fm.experiments.shared.sentences import Arrays
from fedjax_fm.tasks import Outputs


def student(
    delta: Any, backbone: Any, batch: dict[str, jax.Array], key: Any
) -> Outputs:
    """Logits f32[n, 2] of the mean of a sentence's words."""
    real = batch["mask"].astype(jnp.float32)[:, :, None]
    words = delta["table"][batch["ids"]] * real
    mean = words.sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)
    return Outputs(mean @ delta["kernel"] + delta["bias"][None])


def teacher(backbone: Any, batch: dict[str, jax.Array]) -> Outputs:
    """What the teacher said, which the client has kept."""
    return Outputs(batch["said"])


LABELS = tasks.distilled(student, teacher, share=0.0)
SOFT = tasks.distilled(student, teacher, share=1.0)


def weights(config: Any, seed: int) -> dict[str, jax.Array]:
    """Before training."""
    random = np.random.default_rng(seed)
    table = random.normal(size=(config.buckets, config.width))
    return {
        "table": jnp.asarray(0.1 * table, jnp.float32),
        "kernel": jnp.asarray(random.normal(size=(config.width, 2)), jnp.float32),
        "bias": jnp.zeros(2),
    }


def federated(run: study.Run, labels: str = "classes") -> dict[str, float]:
    """A student of all clients.

    Args:
      run: of the arm.
      labels: "classes" or "soft", of the teacher, or "true".
    """
    data = run.data
    clients = data.clients
    if labels == "classes":
        clients = [_as_told(one) for one in clients]
    if labels != "true":
        run.sent(down=len(clients) * data.teacher_bytes)
        run.computed(data.labelling)
    return _trained(run, clients, SOFT if labels == "soft" else LABELS)


def _as_told(part: Arrays) -> Arrays:
    """Sentences with the teacher's classes for labels."""
    return {**part, "label": part["said"].argmax(axis=1).astype(np.int32)}


def at_server(run: study.Run) -> dict[str, float]:
    """A student of the server's labels alone."""
    return _trained(run, [run.data.server], LABELS, travels=False)


def _trained(
    run: study.Run, clients: list[Arrays], task: ffm.Task, **how: Any
) -> dict[str, float]:
    """All rounds; every client takes part in each."""
    adam = optax.adam(run["rate"])
    algorithm = ffm.fedavg(task, adam, **study.walk(run.config))
    found = run.simulate(
        algorithm,
        clients,
        weights(run.config, run.seed),
        task=LABELS,
        test=run.data.test,
        devices=1,
        **how,
    )
    return {name: found.scores[name] for name in ("accuracy", "agreement")}


def untrained(run: study.Run) -> dict[str, float]:
    """The student as it begins."""
    found = ffm.evaluate(LABELS, weights(run.config, run.seed), (), run.data.test)
    scores = means(found)
    return {name: float(scores[name]) for name in ("accuracy", "agreement")}
