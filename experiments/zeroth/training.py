"""FedKSeed, FedAvg and no training."""

import optax

import fedjax_fm as ffm
from fedjax_fm import study
from fedjax_fm.algorithms.fedkseed import fedkseed
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.zeroth.memory import EPSILON, at_work, forward


def zero_order(
    run: study.Run, pro: bool = False, confuse: bool = False
) -> dict[str, float]:
    """FedKSeed or FedKSeed-Pro, without a perturbed copy of the model at any time."""
    how = {"epsilon": EPSILON, "pro": pro, "lazy": True, **study.walk(run.config)}
    algorithm = fedkseed(run.data.task, run["learning_rate"], **how)
    algorithm = confused(algorithm) if confuse else algorithm
    return {**trained(run, algorithm), "forward": forward(run, perturbed=True)}


def fedavg(run: study.Run) -> dict[str, float]:
    """Gradients, in as many steps."""
    sgd = optax.sgd(run["learning_rate"])
    return trained(run, ffm.fedavg(run.data.task, sgd, **study.walk(run.config)))


def untrained(run: study.Run) -> dict[str, float]:
    """The model before training."""
    own, adapted = run.data, run.data.adapted
    parts = (adapted.delta, adapted.backbone)
    scores = ffm.evaluate(own.task, *parts, own.test, batch_size=32)
    return {**means(scores), "forward": forward(run)}


def confused(algorithm: ffm.Algorithm) -> ffm.Algorithm:
    """The same, but the server applies the scalars along other directions."""
    (exchange,) = algorithm.exchanges

    def server(state, aggregate, key):
        other = state._replace(master=state.master + 1)
        after, metrics = exchange.server(other, aggregate, key)
        return after._replace(master=state.master), metrics

    return algorithm._replace(exchanges=(exchange._replace(server=server),))


def trained(run: study.Run, algorithm: ffm.Algorithm) -> dict[str, float]:
    """Loss (and accuracy) on the test set, and the memory of a client at work."""
    own = run.data
    found = run.simulate(
        algorithm,
        own.train,
        own.adapted,
        cohort_size=run.config.cohort,
        task=own.task,
        test=own.test,
        every=max(1, run.rounds // 4),
        batch_size=32,
        devices=1,
        block_size=1,
    )
    return {**found.scores, "client": at_work(run, algorithm)}
