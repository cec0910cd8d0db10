"""FedDF, and federated averaging in each group."""

from typing import Any

import numpy as np
import optax

from fedjax_fm import study
from fedjax_fm.algorithms.feddf import feddf
from fedjax_fm.experiments.feddf.models import (
    BOTH,
    accuracies,
    architectures,
    groups_of,
    own_models,
    weights,
)
from fedjax_fm.types import Algorithm


def fusion(
    run: study.Run,
    epochs: int | None = 5,
    average: Any = "logits",
    distil: bool = True,
    shuffle: bool = False,
) -> dict[str, float]:
    """FedDF, or without distillation federated averaging in each group.

    Args:
      run: of the arm.
      epochs: of a client in a round; None if they are tuned.
      average: of the teachers, as for `feddf`.
      distil: whether the server takes steps.
      shuffle: whether the teachers' answers are paired with other images.
    """
    config, found = run.config, run.data
    groups, steps, rate = groups_of(found), 0, 0.0
    if distil:
        steps = config.server_steps
        rate = optax.cosine_decay_schedule(run["server_rate"], steps)
    algorithm = feddf(
        architectures(run["rate"]),
        groups,
        {"x": found.public["x"]},
        server_steps=steps,
        server_optimizer=optax.adam(rate),
        server_batch_size=64,
        average=average,
        epochs=run["epochs"] if epochs is None else epochs,
        batch_size=config.batch_size,
    )
    if shuffle:
        algorithm = with_shuffled_teachers(algorithm, len(found.public["x"]))
    done = run.simulate(
        algorithm,
        found.clients,
        weights(run.seed),
        backbone=((), ()),
        cohort_size=len(groups) // 2,
        task=BOTH,
        test=found.test,
    )
    return accuracies(own_models(done, groups), groups, found.test)


def with_shuffled_teachers(algorithm: Algorithm, n_public: int) -> Algorithm:
    """The same, but the sums of answers are in another order of images.

    Args:
      algorithm: FedDF.
      n_public: images.
    """
    rows = np.random.default_rng(0).permutation(n_public)

    def shuffled(exchange: Any) -> Any:
        def server(state, aggregate, key):
            value = aggregate.value._replace(opinions=aggregate.value.opinions[rows])
            return exchange.server(state, aggregate._replace(value=value), key)

        return exchange._replace(server=server)

    exchanges = tuple(shuffled(exchange) for exchange in algorithm.exchanges)
    return algorithm._replace(exchanges=exchanges)
