"""One place has all examples: what both studies of the gate train."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, study


def adapt(run: study.Run, whole: Any, kind: str, targets: str) -> peft.Adapted:
    """The model with what is trained of it.

    Args:
      run: its seed draws the adapter.
      whole: the model before any method.
      kind: "head", "lora" or "full".
      targets: the layers that LoRA adapts.
    """
    rank = run.config.rank
    method = {
        "head": peft.head(),
        "lora": peft.lora(rank, 2.0 * rank, targets=targets),
        "full": peft.full(),
    }[kind]
    return peft.apply(whole, method, jax.random.key(run.seed))


def tuned(
    run: study.Run,
    adapted: peft.Adapted,
    task: ffm.Task,
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    **how: Any,
) -> study.Simulated:
    """Clipped Adam along a cosine to a tenth; a round is one step.

    Args:
      run: has the learning rate; its configuration has epochs and batch size.
      adapted: what is trained.
      task: what is learned.
      train: arrays of examples.
      test: arrays that are scored after the last step.
      **how: more for `run.simulate`.

    Returns:
      The simulation.
    """
    n, config = len(next(iter(train.values()))), run.config
    steps = config.epochs * -(-n // config.batch_size)
    schedule = optax.cosine_decay_schedule(run["learning_rate"], steps, alpha=0.1)
    server = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    algorithm = ffm.fedavg(
        task, optax.sgd(1.0), server, local_steps=1, batch_size=config.batch_size
    )
    return run.simulate(
        algorithm,
        ffm.Population.from_clients([dict(train)]),
        adapted.delta,
        steps,
        backbone=adapted.backbone,
        cohort_size=1,
        task=task,
        test=test,
        every=steps,
        travels=False,
        **how,
    )


def fixed_quarter(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that tune, the same for all seeds, and rows that seeds draw from.

    Args:
      rows: numbers of all training rows.

    Returns:
      (a quarter, the others).
    """
    order = np.random.default_rng(2026).permutation(rows)
    n = len(order) // 4
    return order[:n], order[n:]
