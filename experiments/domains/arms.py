"""The arms of the study of domains: one target after the other, its labels unread."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import study, tasks
from fedjax_fm.algorithms import FADANetworks, fada, fada_networks
from fedjax_fm.experiments.shared.digits import Arrays
from fedjax_fm.study.judged import joined
from fedjax_fm.types import Tree

TARGET, PLANTED = 0, 1  # places of clients: the target first, then a source
MOMENTUM = 0.9  # of FADA: Adam would step alike for each loss, whatever its strength
EVENLY = 1e9  # a temperature at which all sources count the same


class Case(NamedTuple):
    """One target and its sources.

    Attributes:
      target: the examples of the target that train, whose labels nobody reads.
      sources: of the other domains.
      test: of the target.
      networks: untrained.
      delta: theirs.
    """

    target: Arrays
    sources: list[Arrays]
    test: Arrays
    networks: FADANetworks
    delta: dict[str, Tree]

    @property
    def task(self) -> ffm.Task:
        """Classification by the target's parts."""
        return tasks.from_logits(self.networks.logits)


def extract(layers: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
    """Two rectified layers."""
    hidden = jax.nn.relu(batch["x"] @ layers["w0"] + layers["b0"])
    return jax.nn.relu(hidden @ layers["w1"] + layers["b1"])


def case_of(run: study.Run, target: int, plant: bool, shuffle: bool) -> Case:
    """The domain `target` against all others.

    Args:
      run: has data and seed.
      target: number of the domain.
      plant: whether the first source has labels at random.
      shuffle: whether all sources have.
    """
    data, width = run.data, run.config.width
    numbers = [k for k in range(len(data.train)) if k != target]
    sources = [data.train[k] for k in numbers]
    bad = range(len(sources)) if shuffle else range(PLANTED if plant else 0)
    for k in bad:
        sources[k] = study.shuffled_labels(sources[k], run.seed + k)
    key, other = jax.random.split(jax.random.key(run.seed))
    first, second = jax.random.split(key)
    n_in = sources[0]["x"].shape[1]
    layers = {
        "w0": jax.random.normal(first, (n_in, width)) * (2 / n_in) ** 0.5,
        "b0": jnp.zeros(width),
        "w1": jax.random.normal(second, (width, width)) * (2 / width) ** 0.5,
        "b1": jnp.zeros(width),
    }
    sizes = {"features": width, "classes": data.classes, "width": width}
    networks, delta = fada_networks(extract, layers, other, **sizes)
    return Case(
        target=data.train[target],
        sources=sources,
        test=data.test[target],
        networks=networks,
        delta=delta,
    )


def targets_of(run: study.Run) -> range:
    """Numbers of the domains that are the target; fewer while tuning."""
    config = run.config
    wanted = config.tuning_targets if run.is_tuning else config.targets
    return range(min(wanted, len(run.data.train)))


def over_targets(
    train: Callable[[study.Run, Case], study.Simulated],
    *,
    plant: bool = False,
    shuffle: bool = False,
) -> Callable[[study.Run], dict[str, float]]:
    """An arm: the mean accuracy over targets, and the weight of the first source.

    Args:
      train: trains one case.
      plant: whether the first source of every target is a bad one.
      shuffle: whether all sources are.
    """

    def arm(run: study.Run) -> dict[str, float]:
        accuracies, weights = [], []
        for target in targets_of(run):
            case = case_of(run, target, plant, shuffle)
            found = train(run, case)
            scores = ffm.evaluate(case.task, *found.model(), case.test)
            accuracies.append(float(np.mean(scores["accuracy"])))
            share = found.metrics.get(f"attention_{PLANTED}")
            if share is not None:
                weights.append(float(np.mean(share[len(share) // 2 :])))
        result = {"accuracy": float(np.mean(accuracies)), "worst": min(accuracies)}
        return result | ({"weight": float(np.mean(weights))} if weights else {})

    return arm


def adversarial(
    dynamic: bool, whole: bool, begin: Literal["own", "target"] = "target"
) -> Callable:
    """FADA, or parts of it.

    Args:
      dynamic: whether sources count as their updates tighten the target's clusters.
      whole: whether features are disentangled; else alignment alone, DANN.
      begin: with what sources begin a round, "target" or "own".
    """

    def train(run: study.Run, case: Case) -> study.Simulated:
        config, rate = run.config, run["learning_rate"]
        others = ("confusion", "separation", "reconstruction")
        strength = config.disentangling if whole else 0.0
        algorithm = fada(
            case.networks,
            optax.sgd(rate, momentum=MOMENTUM),
            optax.sgd(rate, momentum=MOMENTUM),
            target=TARGET,
            clusters=run.data.classes,
            temperature=config.temperature if dynamic else EVENLY,
            alignment=run["alignment"],
            begin=begin,
            local_steps=config.local_steps,
            batch_size=config.batch_size,
            **dict.fromkeys(others, strength),
        )
        return simulated(run, case, algorithm, [case.target, *case.sources], case.delta)

    return train


def averaged(run: study.Run, case: Case) -> study.Simulated:
    """FedAvg of the sources; the target is not there."""
    config = run.config
    how = study.walk(config)
    algorithm = ffm.fedavg(case.task, optax.adam(run["learning_rate"]), **how)
    return simulated(run, case, algorithm, case.sources, case.delta)


def pooled(run: study.Run, case: Case) -> study.Simulated:
    """All sources in one place, as many examples a step."""
    config, rate = run.config, run["learning_rate"]
    size = config.batch_size * len(case.sources)
    server = optax.adam(rate)
    algorithm = ffm.fedavg(
        case.task, optax.sgd(1.0), server, local_steps=1, batch_size=size
    )
    how = {"travels": False, "rounds": config.rounds * config.local_steps}
    clients = [joined(case.sources)]
    return simulated(run, case, algorithm, clients, case.delta, **how)


def simulated(
    run: study.Run,
    case: Case,
    algorithm: ffm.Algorithm,
    clients: list[Arrays],
    delta: Tree,
    *,
    rounds: int | None = None,
    **how: Any,
) -> study.Simulated:
    """A run of all clients in each round, scored on the target at its end."""
    n_rounds = run.config.rounds if rounds is None else rounds
    return run.simulate(
        algorithm,
        ffm.Population.from_clients(clients),
        delta,
        n_rounds,
        cohort_size=len(clients),
        task=case.task,
        test=case.test,
        every=n_rounds,
        **how,
    )
