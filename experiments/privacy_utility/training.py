"""DP-FedAvg of a part of the model, with the noise that spends epsilon."""

import functools
from typing import Any

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, privacy, study, tasks, trees
from fedjax_fm.algorithms.dp_fedavg import dp_fedavg
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.shared.sentences import Arrays
from fedjax_fm.experiments.shared.tail import first_step
from fedjax_fm.peft.lora_sb import lora_sb
from fedjax_fm.population import samplers
from fedjax_fm.types import Tree


def private(run: study.Run, part: str, epsilon: float | None) -> dict[str, float]:
    """One part of the model, trained at one epsilon; None: without noise."""
    config, found = run.config, run.data
    adapted = peft.apply(found.model, method(part, run), jax.random.key(run.seed))
    task = tasks.classification(adapted)
    noise = multiplier(epsilon, config)
    # The rate is part of the state, so that the whole grid is one program.
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=run["learning_rate"])
    algorithm = dp_fedavg(
        task,
        optax.sgd(1.0),
        adam,
        noise=privacy.independent(),
        clip_norm=run.once(("clip", part), lambda: median_norm(run, task, adapted)),
        # On public documents no privacy is spent, and the noise is a plain number.
        noise_multiplier=float(noise) if run.is_tuning else noise,
        local_steps=1,
        batch_size=config.sentences,
    )
    n = found.clients.n_clients
    done = run.simulate(
        algorithm,
        found.clients,
        adapted,
        cohort_size=config.cohort,
        sampler=samplers.poisson(n, config.cohort / n),
        task=task,
        test=found.test,
        every=config.rounds if run.is_tuning else 5,
    )
    numbers = trees.size(adapted.delta)
    accuracy = done.scores["accuracy"]
    return {"accuracy": accuracy, "numbers": numbers, "noise": float(noise)}


def untrained(run: study.Run) -> dict[str, float]:
    """The random head."""
    adapted = peft.apply(run.data.model, peft.head())
    task = tasks.classification(adapted)
    scores = ffm.evaluate(task, adapted.delta, adapted.backbone, run.data.test)
    return {"accuracy": means(scores)["accuracy"]}


def method(part: str, run: study.Run) -> peft.Method:
    """What trains one of the study's `PARTS`; the head is always trained, too."""
    config = run.config
    adapters: dict[str, Any] = {
        "rank": config.rank,
        "alpha": 2.0 * config.rank,
        "targets": config.targets,
    }
    if part == "lora":
        return peft.lora(**adapters)
    if part == "ffa_lora":
        return peft.lora(**adapters, freeze_a=True)
    if part == "fed_sb":
        data, how = run.data, (config.targets, config.first_rate)
        step = run.once("step", lambda: first_step(data.model, data.public, *how))
        return lora_sb(**adapters, updates=step)
    return {"full": peft.full, "bitfit": peft.bitfit, "head": peft.head}[part]()


def median_norm(run: study.Run, task: ffm.Task, adapted: peft.Adapted) -> float:
    """The median norm of the public clients' first updates.

    With one step of rate 1 an update is a gradient.
    """
    size = run.config.sentences

    def mean(delta: Tree, backbone: Tree, batch: Arrays) -> jax.Array:
        each, _ = task.loss(delta, backbone, batch, None)
        return each.mean()

    @jax.jit
    def norms(delta: Tree, backbone: Tree, clients: Arrays) -> jax.Array:
        def norm(batch: Arrays) -> jax.Array:
            gradient = jax.grad(mean)(delta, backbone, batch)
            return optax.tree.norm(gradient)

        return jax.lax.map(norm, clients)

    clients = {
        name: array.reshape(-1, size, *array.shape[1:])
        for name, array in run.data.public.items()
    }
    found = norms(adapted.delta, adapted.backbone, clients)
    return float(np.median(found))


@functools.cache
def multiplier(epsilon: float | None, config: Any) -> Any:
    """The noise multiplier that spends epsilon, with what it is accounted for.

    Args:
      epsilon: of all rounds; None for no noise.
      config: has clients, cohort, rounds and delta.
    """
    if epsilon is None:
        return 0.0
    sampler = samplers.poisson(config.clients, config.cohort / config.clients)
    how = {"rounds": config.rounds, "delta": config.delta}
    return privacy.multiplier_for(epsilon, sampler, noise=privacy.independent(), **how)
