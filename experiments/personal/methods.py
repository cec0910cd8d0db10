"""The methods, and how a client of each adapts the finished model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, peft, study, tasks
from fedjax_fm.algorithms.feddpa import Adapters


def itself(delta: Any) -> Any:
    """A delta that is the model as it is."""
    return delta


class Made(NamedTuple):
    """A method, ready to run."""

    algorithm: ffm.Algorithm
    task: ffm.Task  # of the clients' models
    finish: dict[str, Any] | None = None  # arguments of `fine_tune` at its end
    alone: Callable[[Any], Any] = itself  # a delta as a model of the task


def walk(run: study.Run) -> dict[str, Any]:
    """What a client does in a round, as arguments of a method."""
    sgd = optax.sgd(run["learning_rate"])
    return {"client_optimizer": sgd, **study.walk(run.config)}


def adapting(run: study.Run, **how: Any) -> dict[str, Any]:
    """How a client adapts a finished model, as arguments of `fine_tune`."""
    return {**walk(run), "local_steps": run.config.own_steps, "seed": run.seed, **how}


def one_tree(run: study.Run, method: Callable, **how: Any) -> Made:
    """A method whose models are deltas of one task."""
    task = tasks.classification(run.data.adapted)
    return Made(algorithm=method(task, **walk(run), **how), task=task)


def tuned(run: study.Run) -> Made:
    """FedAvg, whose model each client fine-tunes at the end."""
    return one_tree(run, ffm.fedavg)._replace(finish=adapting(run))


def fedbabu(run: study.Run) -> Made:
    """The body under the first head, then a head for each client."""
    part = {"personal": run.config.personal}
    made = one_tree(run, algorithms.fedbabu, **part)
    return made._replace(finish=adapting(run, **part))


def per_fedavg(run: study.Run) -> Made:
    """A start, then one step of each client."""
    rate = run.config.inner_rate
    made = one_tree(run, algorithms.per_fedavg, inner_rate=rate)
    one_step = {"client_optimizer": optax.sgd(rate), "local_steps": 1}
    return made._replace(finish=adapting(run, **one_step))


def apfl(run: study.Run) -> Made:
    """Products of both adapters are mixed, not their factors."""
    task = tasks.classification(run.data.adapted)
    both = tasks.classification(peft.beside(run.data.adapted))
    how = {"mix_rate": run["learning_rate"], "personal_task": both}
    algorithm = algorithms.apfl(task, **how, **walk(run))
    return Made(algorithm=algorithm, task=both, alone=shared_alone)


def shared_alone(delta: Any) -> Adapters:
    """An adapter beside which a private one counts nothing."""
    return Adapters(shared=delta, private=delta, mix=jnp.float32(0))


def of_config(method: Callable, **names: str) -> Callable[[study.Run], Made]:
    """A method whose arguments are settings.

    Args:
      method: the factory.
      **names: {argument: setting}.
    """

    def make(run: study.Run) -> Made:
        how = {name: getattr(run.config, field) for name, field in names.items()}
        return one_tree(run, method, **how)

    return make
