"""Methods as functions of two rates, the sweep that chooses these, and a run at the best."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, study
from fedjax_fm.experiments.optimisers.clients import data
from fedjax_fm.experiments.shared.controls import as_it_begins
from fedjax_fm.study import percent


class Method(NamedTuple):
    """A method and the rates of its second axis."""

    make: Callable[..., ffm.Algorithm]  # (task, client's, server's, **walk)
    rates: str = "server_rates"


def by_server(name: str, **how: Any) -> Method:
    """A method with any optimizer at the server."""
    factory = getattr(algorithms, name)

    def make(task, client, server, **walk):
        return factory(task, optax.sgd(client), optax.sgd(server), **how, **walk)

    return Method(make)


def by_name(name: str, rates: str) -> Method:
    """A method that takes its server's rate by name."""
    factory = getattr(algorithms, name)

    def make(task, client, server, **walk):
        optimizer = optax.sgd(client)
        return factory(task, optimizer, server_learning_rate=server, **walk)

    return Method(make, rates)


def feddyn(task, client, alpha, **walk):
    """FedDyn, which has no rate of the server."""
    return algorithms.feddyn(task, optax.sgd(client), alpha=alpha, **walk)


METHODS = {
    "fedavg": by_server("fedavg"),
    "fedprox": by_server("fedprox", mu=0.01),
    "scaffold": by_server("scaffold"),
    "fedavgm": by_name("fedavgm", "server_rates"),
    "fedadagrad": by_name("fedadagrad", "adaptive_rates"),
    "fedyogi": by_name("fedyogi", "adaptive_rates"),
    "fedadam": by_name("fedadam", "adaptive_rates"),
    "fednova": by_server("fednova"),
    "feddyn": Method(feddyn, "alphas"),
}

SCORES = {
    "0.1": percent("accuracy", "alpha 0.1"),
    "1": percent("mild", "alpha 1"),
    "iid": percent("iid", "IID"),
}


class Rates(NamedTuple):
    """The best of a sweep."""

    client: float
    server: float


@functools.cache
def tuned(config: Any, name: str, kind: str) -> Rates:
    """The rates of the lowest loss on the tuning split's test, in one compiled sweep."""
    made, method = data(config, study.Study.tuning_seed, "tuning"), METHODS[name]
    grid = {"client": config.client_rates, "server": getattr(config, method.rates)}
    only = [values[0] for values in grid.values() if len(values) == 1]
    if len(only) == len(grid):
        return Rates(*only)

    def algorithm(client, server):
        return method.make(made.task, client, server, **study.walk(config))

    population = ffm.Population.from_clients(made.clients[kind])
    simulator = ffm.Simulator(
        algorithm(0.1, 0.1),
        population,
        backbone=made.adapted.backbone,
        cohort_size=min(config.cohort, population.n_clients),
        devices=1,
    )
    delta = made.adapted.delta
    found = ffm.sweep(simulator, delta, config.rounds, hyper=grid, algorithm=algorithm)

    def loss_of(lane):
        return made.task.loss(lane, made.adapted.backbone, made.test, None)[0].mean()

    losses = np.array(jax.vmap(loss_of)(found.delta))
    losses[found.rounds < config.rounds] = np.inf
    best = int(np.nanargmin(losses))
    return Rates(*(float(found.hyper[axis][best]) for axis in grid))


def trained(run: study.Run, method: str) -> dict[str, float]:
    """One method, under every partition."""
    config, made = run.config, run.data

    def accuracy(kind: str) -> float:
        rates, clients = tuned(config, method, kind), made.clients[kind]
        run.notes[f"rates, {kind}"] = rates._asdict()
        found = run.simulate(
            METHODS[method].make(made.task, *rates, **study.walk(config)),
            clients,
            made.adapted,
            cohort_size=min(config.cohort, len(clients)),
            task=made.task,
            test=made.test,
        )
        return found.scores["accuracy"]

    return {SCORES[kind].name: accuracy(kind) for kind in config.partitions}


def untrained(run: study.Run) -> dict[str, float]:
    """The model as it begins."""
    made, start = run.data, run.data.adapted
    score = as_it_begins(made.task, start.delta, start.backbone, made.test)
    return {SCORES[kind].name: score for kind in run.config.partitions}
