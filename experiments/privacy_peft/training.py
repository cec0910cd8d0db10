"""The arms: a part of the last layer, trained at one epsilon, and what it gives away."""

import functools
from typing import Any

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, privacy, study, tasks, trees
from fedjax_fm.algorithms.dp_fedavg import dp_fedavg
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.privacy_peft import inversion
from fedjax_fm.experiments.privacy_peft.clients import Arrays, only
from fedjax_fm.experiments.privacy_peft.leaks import Watching, as_columns, watch
from fedjax_fm.experiments.privacy_peft.parts import adapted_by, median_norm, upload
from fedjax_fm.experiments.privacy_utility.training import multiplier
from fedjax_fm.population import samplers
from fedjax_fm.types import Tree

INVERTED = 4  # clients, each by itself
DECOYS = 10  # times as many rows of others in the attacker's pool
SGD: Any = optax.sgd(1.0)  # of one step: an upload is a gradient


def private(run: study.Run, part: str, epsilon: float | None) -> dict[str, float]:
    """One part, trained at one epsilon; None: clipped, but without noise."""
    config, data, adapted = run.config, run.data, adapted_by(run, part)
    task, noise = tasks.token_classification(adapted), multiplier(epsilon, config)
    clip = run.once(("clip", part), lambda: median_norm(run, task, adapted))
    n, rate = len(data.clients), config.cohort / config.clients
    # Public users are fewer, and no privacy is spent on them: a plain number, with
    # which their mean has the noise of a run's.
    public_noise = float(noise) * n / config.clients
    method = dp_fedavg(
        task,
        SGD,
        adam(run),
        noise=privacy.independent(),
        clip_norm=clip,
        noise_multiplier=public_noise if run.is_tuning else noise,
        local_steps=1,
        batch_size=config.rows,
    )
    how: dict[str, Any] = {
        "cohort_size": round(rate * n),
        "sampler": samplers.poisson(n, rate),
    }
    if run.is_tuning:
        how |= {"task": task, "test": data.test, "every": run.rounds}
        found = run.simulate(method, data.clients, adapted, **how)
        return {"exposure": found.scores["loss"]}  # rates are chosen by the loss
    looks = Watching(watch(run, data, adapted, epsilon))
    every = config.every if epsilon is None else config.every_with_noise
    run.simulate(method, data.clients, adapted, every=every, looks=[looks], **how)
    run.notes |= looks.last.notes
    return {
        **scores(run.curve, target_of(run)),
        "inversion": inverted(run, part, adapted, clip, float(noise)),
        "numbers": trees.size(adapted.delta),
        "noise": float(noise),
    }


def adam(run: study.Run) -> optax.GradientTransformation:
    """The server's; the rate is part of its state, so that a grid is one program."""
    return optax.inject_hyperparams(optax.adam)(learning_rate=run["learning_rate"])


def target_of(run: study.Run) -> float:
    """The held-out loss at which arms are compared, the same for all arms of a seed."""

    def before_training() -> float:
        adapted = adapted_by(run, "full")
        task = tasks.token_classification(adapted)
        parts = (adapted.delta, adapted.backbone)
        return means(ffm.evaluate(task, *parts, run.data.test))["loss"]

    return run.once("before", before_training) - run.config.drop


def scores(curve: list[dict[str, float]], target: float) -> dict[str, float]:
    """What was measured last, and when the loss first reached the target.

    Where it never does, "at equal loss" is at the lowest loss.

    Args:
      curve: rows with columns `eval_...`.
      target: of the held-out loss.
    """
    losses = [row["eval_loss"] for row in curve]
    reached = [row for row in curve if row["eval_loss"] <= target]
    equal = reached[0] if reached else curve[int(np.argmin(losses))]
    last = {
        name.removeprefix("eval_"): value
        for name, value in curve[-1].items()
        if name.startswith("eval_")
    }
    found = {
        **last,
        "exposure": equal["eval_exposure"],
        "area_at": equal["eval_area"],
        "loss_at": equal["eval_loss"],
        "final": last["exposure"],
    }
    return found | ({"reached": float(equal["round"])} if reached else {})


def inverted(
    run: study.Run, part: str, adapted: peft.Adapted, clip: float, noise: float
) -> float:
    """F1 of tokens that are read off the first upload of a client, a mean of some."""
    data, size = run.data, run.config.rows
    others = rows(data.outsiders, slice(0, DECOYS * size))
    chosen = [
        rows(data.members, slice(k * size, (k + 1) * size)) for k in range(INVERTED)
    ]
    uploads = run.once(("uploads", part), lambda: first_uploads(adapted, chosen))
    found = []
    for k, (own, plain) in enumerate(zip(chosen, uploads, strict=True)):
        key = jax.random.fold_in(jax.random.key(run.seed), k)
        sent = inversion.noisy(plain, clip, noise, key)
        found.append(inversion.recovered(adapted, sent, own, others, seed=k))
    return float(np.mean(found))


def first_uploads(adapted: peft.Adapted, clients: list[Arrays]) -> list[Tree]:
    """What some clients send of the model before training."""
    send = jax.jit(functools.partial(upload, tasks.token_classification(adapted)))
    return [send(adapted.delta, adapted.backbone, own) for own in clients]


def rows(arrays: Arrays, part: slice) -> Arrays:
    """Some rows."""
    return {name: column[part] for name, column in arrays.items()}


def overfitted(run: study.Run) -> dict[str, float]:
    """Everything, trained on a few clients in every round, without clipping."""
    config, adapted = run.config, adapted_by(run, "full")
    data, task = only(run.data, config.few), tasks.token_classification(adapted)
    method = dp_fedavg(
        task,
        SGD,
        adam(run),
        noise=privacy.independent(),
        noise_multiplier=0.0,
        clip_norm=np.inf,
        local_steps=1,
        batch_size=config.rows,
    )
    looks = Watching(watch(run, data, adapted))
    rounds = config.overfit_rounds
    run.simulate(method, data.clients, adapted, rounds, every=rounds, looks=[looks])
    run.notes |= looks.last.notes
    return scores(run.curve, target=-np.inf)


def untrained(run: study.Run) -> dict[str, float]:
    """The last layer as it begins."""
    adapted = adapted_by(run, "full")
    watched = watch(run, run.data, adapted)
    found = watched.of(adapted.delta, adapted.backbone)
    run.notes |= found.notes
    return scores([{**as_columns(found), "round": 0.0}], target=-np.inf)
