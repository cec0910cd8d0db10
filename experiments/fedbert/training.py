"""One model on all texts, one for each role, one that is split, and none."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import study
from fedjax_fm.algorithms.fedbert import fedbert
from fedjax_fm.algorithms.local_only import local_only
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.fedbert.speeches import SPECIAL, Rows, without_context
from fedjax_fm.population import samplers
from fedjax_fm.study.judged import joined


def centralised(run: study.Run) -> dict[str, float]:
    """One model on all texts, as many rows a step as the clients have together."""
    steps, size = steps_of(run), run.config.batch_size * run.config.roles
    how = {"local_steps": steps, "batch_size": size}
    algorithm = ffm.fedavg(run.data.task, adam(run, steps), **how)
    return of_server(run, simulate(run, algorithm, [joined(run.data.train)], 1))


def local(run: study.Run, share: float = 1.0) -> dict[str, float]:
    """A model of its own for each role, with a share of the steps."""
    own, steps = run.data, round(share * steps_of(run))
    how = {"local_steps": steps, "batch_size": run.config.batch_size}
    found = simulate(run, local_only(own.task, adam(run, steps), **how), own.train, 1)
    models = [found.model(k)[0] for k in range(run.config.roles)]
    all_roles = joined(own.test)
    return {
        "perplexity": perplexity(run, zip(models, own.test, strict=True)),
        "on_all_roles": perplexity(run, [(model, all_roles) for model in models]),
    }


def parallel(run: study.Run, shuffle: bool = False) -> dict[str, float]:
    """FedBERT, all roles side by side."""
    config, steps, train = run.config, steps_of(run), run.data.train
    if shuffle:
        train = [without_context(part, run.seed) for part in train]
    how = {"local_steps": config.round_steps, "batch_size": config.batch_size}
    algorithm = fedbert(run.data.split, adam(run, steps), adam(run, steps), **how)
    return of_server(run, simulate(run, algorithm, train, steps // config.round_steps))


def in_turn(run: study.Run) -> dict[str, float]:
    """FedBERT, one role after the other, over as many rows in all."""
    config, n, size = run.config, run.config.round_steps, run.config.turn_batch_size
    turns = steps_of(run) * config.batch_size * config.roles // (n * size)
    optimizers = adam(run, turns * n // config.roles), adam(run, turns * n)
    algorithm = fedbert(run.data.split, *optimizers, local_steps=n, batch_size=size)
    sampler = samplers.cyclic(config.roles, 1, shuffle=True)
    found = simulate(
        run, algorithm, run.data.train, turns, cohort_size=1, sampler=sampler
    )
    return of_server(run, found)


def untrained(run: study.Run) -> dict[str, float]:
    """The random weights."""
    return {"perplexity": perplexity(run, [(run.data.delta, joined(run.data.test))])}


def frequencies(run: study.Run) -> dict[str, float]:
    """Word frequencies of all training texts, one added to each count."""
    first = len(SPECIAL)
    train = joined(run.data.train)["input_ids"]
    test = joined(run.data.test)["input_ids"]
    counts = np.bincount(train[train >= first], minlength=run.config.vocabulary) + 1.0
    nats = -np.log(counts / counts[first:].sum())
    return {"perplexity": math.exp(nats[test[test >= first]].mean())}


def steps_of(run: study.Run) -> int:
    """Steps of the body where roles are side by side."""
    return run.config.tuning_steps if run.is_tuning else run.config.steps


def adam(run: study.Run, steps: int) -> optax.GradientTransformation:
    """A tenth of the steps of warm-up, then a cosine to zero."""
    rate, warm_up = run["learning_rate"], steps // 10
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm_up, steps)
    return optax.adam(schedule)


def simulate(
    run: study.Run, algorithm: ffm.Algorithm, train: list[Rows], rounds: int, **how: Any
) -> study.Simulated:
    """A run on one device: the clients' steps are too small for several."""
    return run.simulate(algorithm, train, run.data.delta, rounds, devices=1, **how)


def perplexity(run: study.Run, pairs: Iterable[tuple[Any, Rows]]) -> float:
    """Perplexity of masked tokens, each token counting once.

    Args:
      run: of the arm.
      pairs: a delta, and rows that it is judged on.
    """
    keys = [jax.random.key(draw) for draw in range(run.config.draws)]
    score = functools.partial(ffm.evaluate, run.data.task)
    found = [score(delta, (), part, key=key) for delta, part in pairs for key in keys]
    return math.exp(means(joined(found))["loss"])


def of_server(run: study.Run, found: study.Simulated) -> dict[str, float]:
    """Perplexity of the server's model on the held-out speeches of all roles."""
    delta, _ = found.model()
    return {"perplexity": perplexity(run, [(delta, joined(run.data.test))])}
