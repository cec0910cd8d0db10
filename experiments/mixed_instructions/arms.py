"""How the tasks are learned: together, apart, in one place, or with a private adapter."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import evaluation, peft, study, tasks
from fedjax_fm.algorithms import feddpa_t, local_only
from fedjax_fm.evaluation import Instances
from fedjax_fm.study.judged import joined

HOW: dict[str, Any] = {"batch_size": 8, "bucket": 32}  # of evaluations


def walk(run: study.Run) -> dict[str, Any]:
    """What a client does in a round."""
    config = run.config
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(run["learning_rate"]))
    steps = study.walk(config)
    return {"client_optimizer": adam, **steps}


def simulated(
    run: study.Run, algorithm: ffm.Algorithm, clients: list[Any], **how: Any
) -> study.Simulated:
    """A run of all clients in every round."""
    data, rounds = run.data, rounds_of(run)
    given = {"rounds": rounds, **how}
    return run.simulate(
        algorithm,
        ffm.Population.from_clients(clients),
        data.adapted.delta,
        backbone=data.adapted.backbone,
        cohort_size=len(clients),
        **given,
    )


def rounds_of(run: study.Run) -> int:
    """Rounds, which may be fewer while tuning."""
    return run.config.tuning_rounds if run.is_tuning else run.config.rounds


def together(run: study.Run, shuffle: bool = False) -> dict[str, float]:
    """FedIT: one adapter, averaged."""
    data = run.data
    task = tasks.language_modeling(data.adapted)
    clients = data.shuffled if shuffle else data.train
    found = simulated(run, ffm.fedavg(task, **walk(run)), list(clients.values()))
    return scores(run, found.model, lambda k: task, n_models=1)


def in_one_place(run: study.Run) -> dict[str, float]:
    """All tasks shuffled together, as many examples a step and as many steps."""
    data, config = run.data, run.config
    task, clip = tasks.language_modeling(data.adapted), optax.clip_by_global_norm(1.0)
    server = optax.chain(clip, optax.adam(run["learning_rate"]))
    size = config.batch_size * len(data.train)
    algorithm = ffm.fedavg(task, optax.sgd(1.0), server, local_steps=1, batch_size=size)
    how = {"travels": False, "rounds": rounds_of(run) * config.local_steps}
    found = simulated(run, algorithm, [joined(list(data.train.values()))], **how)
    return scores(run, found.model, lambda k: task, n_models=1)


def alone(run: study.Run) -> dict[str, float]:
    """Every client with its task alone."""
    data = run.data
    task = tasks.language_modeling(data.adapted)
    algorithm = local_only(task, **walk(run))
    found = simulated(run, algorithm, list(data.train.values()))
    return scores(run, found.model, lambda k: task, n_models=len(data.train))


def with_private(run: study.Run) -> dict[str, float]:
    """FedDPA-T, whose adapters are mixed for each example."""
    data, config = run.data, run.config
    task = tasks.language_modeling(data.adapted)
    both = tasks.language_modeling(peft.beside(data.adapted))
    found = simulated(run, feddpa_t(task, both, **walk(run)), list(data.train.values()))
    features = tasks.language_features(data.adapted)
    mixed = evaluation.by_instance(both, features, omega_max=config.omega_max)
    rows = list(data.train.values())

    def model(k: int) -> tuple[Any, Any]:
        adapters, backbone = found.model(k)
        some = {name: x[: config.instances] for name, x in rows[k].items()}
        return Instances(adapters, some), backbone

    return scores(run, model, lambda k: mixed, n_models=len(rows))


def untuned(run: study.Run) -> dict[str, float]:
    """The model as it is."""
    adapted = run.data.adapted
    task = tasks.language_modeling(adapted)

    def model(k: int) -> tuple[Any, Any]:
        return adapted.delta, adapted.backbone

    return scores(run, model, lambda k: task, n_models=1)


def scores(
    run: study.Run,
    model: Callable[[int], tuple[Any, Any]],
    task: Callable[[int], ffm.Task],
    n_models: int,
) -> dict[str, float]:
    """Nats a token on tasks that train, each by its client's model, and on others.

    Args:
      run: has the tests.
      model: `client -> (delta, backbone)`.
      task: `client -> task`.
      n_models: clients with a model of their own; 1: the server's.
    """
    data, names = run.data, list(run.data.train)

    @functools.cache
    def parts(k: int) -> tuple[Any, Any]:
        return model(k)

    def loss(k: int, name: str) -> float:
        found = ffm.evaluate(task(k), *parts(k), data.tests[name], **HOW)
        return nats(found)

    own = [loss(k % n_models, name) for k, name in enumerate(names)]
    run.clients = own
    result = {"loss": float(np.mean(own))}
    if run.is_tuning:
        return result
    judges = range(min(n_models, run.config.judges))
    others = [loss(k, name) for k in judges for name in data.unseen]
    return {**result, "unseen": float(np.mean(others))}


def nats(found: Mapping[str, np.ndarray]) -> float:
    """The mean loss of all tokens together.

    Args:
      found: of `evaluate`.
    """
    return float(np.average(found["loss"], weights=found.get("weight")))
