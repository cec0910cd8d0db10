"""FedIT, FedDPA-F, FedDPA-T and local training, and how their clients are judged."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks
from fedjax_fm.algorithms.feddpa import feddpa_f, feddpa_t
from fedjax_fm.algorithms.local_only import local_only
from fedjax_fm.experiments.feddpa.mixes import INPUTS
from fedjax_fm.experiments.shared.sentences import Arrays
from fedjax_fm.study.judged import joined


class Made(NamedTuple):
    """A method, ready to run."""

    algorithm: ffm.Algorithm
    rounds: int
    task: ffm.Task  # of a client's model; it may read the column `mix`


def steps(run: study.Run) -> dict[str, Any]:
    """What a client does in a round, as arguments of a method."""
    adam = optax.adam(run["learning_rate"])
    return {"client_optimizer": adam, **study.walk(run.config)}


def one_adapter(method: Callable, run: study.Run) -> Made:
    """FedIT, or local training."""
    task = tasks.classification(run.data.adapted, inputs=INPUTS)
    algorithm = method(task, **steps(run))
    return Made(algorithm, run.rounds, task)


def dpa_f(run: study.Run) -> Made:
    """The shared adapter to its end, then the private ones for as many steps."""
    rounds = run.rounds
    how = {"rounds": rounds, "private_steps": rounds * run.config.local_steps}
    algorithm = feddpa_f(*two_tasks(run), **how, **steps(run))
    return Made(algorithm, rounds + 1, mixed(run))


def dpa_t(run: study.Run) -> Made:
    """Both adapters in every round."""
    algorithm = feddpa_t(*two_tasks(run), **steps(run))
    return Made(algorithm, run.rounds, mixed(run))


def two_tasks(run: study.Run) -> tuple[ffm.Task, ffm.Task]:
    """The tasks of the shared adapter, and of both."""
    adapted = run.data.adapted
    both = tasks.classification(peft.beside(adapted), inputs=INPUTS)
    return tasks.classification(adapted), both


def mixed(run: study.Run) -> ffm.Task:
    """The task of both adapters, each example with a mix of its own."""
    both = two_tasks(run)[1]

    def loss(adapters, backbone, batch, key):
        return both.loss(adapters._replace(mix=batch["mix"]), backbone, batch, key)

    return ffm.Task(loss)


FEDIT = functools.partial(one_adapter, ffm.fedavg)
LOCAL = functools.partial(one_adapter, local_only)


def trained(
    run: study.Run,
    make: Callable[[study.Run], Made],
    mix: Callable,
    turned: bool,
) -> dict[str, float]:
    """One method; arms that differ in the mix alone share a run.

    Args:
      run: of the arm.
      make: the method.
      mix: of the adapters, for each test sentence.
      turned: whether half of the clients turn the labels.
    """
    made = make(run)
    clients = run.data.turned() if turned else run.data.clients
    train = [one.train for one in clients]

    def start() -> study.Simulated:
        return run.simulate(made.algorithm, train, run.data.adapted, made.rounds)

    found = run.simulate_once((make, turned, run["learning_rate"]), start)

    def score(tests: list[Arrays]) -> tuple[float, float]:
        """Accuracy and mean mix."""
        with_mix = [
            {**rows, "mix": mix(run, found, k, rows)} for k, rows in enumerate(tests)
        ]
        each = run.score_clients(found, made.task, with_mix, "accuracy")
        return each.mean(), joined(with_mix)["mix"].mean()

    others, _ = score([one.others for one in clients])
    # The last scores of clients are those that the report shows.
    own, mean_mix = score([one.own for one in clients])
    return {"others": others, "accuracy": own, "mix": mean_mix}
