"""Whose model judges which client: its own, or one that it adapts when it comes later."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import fedjax_fm as ffm
from fedjax_fm import algorithms, evaluation, study, tasks
from fedjax_fm.algorithms.personal import IFCAState
from fedjax_fm.experiments.personal.methods import Made, adapting
from fedjax_fm.experiments.shared.sentences import Arrays

Model = tuple[Any, Any]  # (delta, backbone)
Models = Callable[[int], Model]


def trained(run: study.Run, make: Callable[[study.Run], Made]) -> dict[str, float]:
    """One method."""
    clients, made = run.data.clients, make(run)
    train = [one.train for one in clients]
    found = run.simulate(made.algorithm, train, run.data.adapted)
    everybody = [*clients, *run.data.new]
    scores = evaluation.personal_scores(
        made.task,
        models_of(run, made, found),
        ffm.Population.from_clients([one.test for one in everybody]),
        new=range(len(train), len(everybody)),
    )
    assert scores.new is not None
    run.clients = [mine for mine, _ in scores.each.values()][: len(train)]
    return {
        "accuracy": scores.own.mean,
        "worst": scores.own.worst_decile,
        "spread": scores.own.deviation,
        "shared": scores.shared.mean,
        "new": scores.new.mean,
    }


def starts(run: study.Run, found: study.Simulated) -> list[Model]:
    """What a client that took no part may begin with."""
    server, backbone = found.state.carry.server, run.data.adapted.backbone
    if not isinstance(server, IFCAState):
        return [(found.state.delta, backbone)]
    return [
        (jax.tree.map(lambda x, j=j: x[j], server.models), backbone)
        for j in range(run.config.clusters)
    ]


def tuned_on(run: study.Run, made: Made, start: Model, rows: list[Arrays]) -> Models:
    """Models of clients that adapt one model to their rows, which they download."""
    run.sent(down=len(rows) * ffm.trees.nbytes(start[0]))
    return algorithms.fine_tune(
        tasks.classification(run.data.adapted),
        model=start,
        population=ffm.Population.from_clients(rows),
        **(made.finish or adapting(run)),
    )


def models_of(run: study.Run, made: Made, found: study.Simulated) -> Callable:
    """`client -> (delta, backbone)`: first those that trained, then the new ones."""
    clients, new = run.data.clients, [one.train for one in run.data.new]
    own = found.model
    if made.finish is not None:
        rows = [one.train for one in clients]
        own = tuned_on(run, made, found.model(), rows)
    begins = starts(run, found)
    task = tasks.classification(run.data.adapted)
    adapted = [tuned_on(run, made, start, new) for start in begins]

    def model(client: int | None) -> Model:
        if client is None:
            return found.model()
        k = client - len(clients)
        if k < 0:
            return own(client)
        losses = [ffm.evaluate(task, *x, new[k])["loss"].mean() for x in begins]
        delta, backbone = adapted[int(np.argmin(losses))](k)
        return made.alone(delta), backbone

    return model
