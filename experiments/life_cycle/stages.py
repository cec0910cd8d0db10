"""What happens to a model in its life: a base, a newer base, tuning, tasks in turn."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import algorithms, models, peft, study
from fedjax_fm.evaluation import means
from fedjax_fm.experiments.life_cycle.texts import Rows, Task
from fedjax_fm.tasks import language_modeling
from fedjax_fm.types import Tree


class Tuned(NamedTuple):
    """A base with what was trained of it."""

    adapted: peft.Adapted
    delta: Tree

    def loss(self, part: Rows) -> float:
        """Nats a token.

        Args:
          part: texts.
        """
        task = language_modeling(self.adapted)
        found = ffm.evaluate(task, self.delta, self.adapted.backbone, part)
        return float(means(found)["loss"])

    @property
    def module(self) -> nnx.Module:
        """The whole model."""
        return self.adapted.model(self.delta)


def untrained(run: study.Run) -> Tuned:
    """Random weights, all of which can be trained."""
    config = run.config
    sizes = models.GPT2Config(
        vocab_size=config.vocabulary,
        n_positions=config.length,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
    )
    model = models.GPT2LMHeadModel(sizes, nnx.Rngs(run.seed))
    adapted = peft.apply(model, peft.full())
    return Tuned(adapted, adapted.delta)


def diloco(run: study.Run, start: Tuned, workers: list[Rows], rate: float) -> Tuned:
    """All rounds of DiLoCo, from some weights.

    Args:
      run: of the arm.
      start: where it begins.
      workers: texts of each worker.
      rate: of the inner AdamW.
    """
    config, task = run.config, language_modeling(start.adapted)
    walk = {"local_steps": config.inner_steps, "batch_size": config.batch_size}
    algorithm = algorithms.diloco(task, optax.adamw(rate), **walk)
    return _simulated(run, algorithm, workers, start, config.base_rounds)


def synchronous(run: study.Run, start: Tuned, workers: list[Rows]) -> Tuned:
    """As many steps as DiLoCo, each with all workers' gradients.

    Args:
      run: of the arm.
      start: where it begins.
      workers: texts of each worker.
    """
    config, task = run.config, language_modeling(start.adapted)
    server = optax.adamw(run["rate"])
    walk = {"local_steps": 1, "batch_size": config.batch_size}
    algorithm = ffm.fedavg(task, optax.sgd(1.0), server, **walk)
    rounds = config.base_rounds * config.inner_steps
    return _simulated(run, algorithm, workers, start, rounds)


def base(run: study.Run, newer: bool = False) -> Tuned:
    """The base that all arms of a seed tune, at the rate of the configuration.

    Its bytes are those of no arm.

    Args:
      run: of the arm.
      newer: whether it has gone on with further speeches.
    """
    data, rate = run.data, run.config.base_rate
    if newer:
        return run.once(
            "newer base",
            lambda: diloco(run, base(run), [*data.workers, *data.later], rate),
        )
    return run.once("base", lambda: diloco(run, untrained(run), data.workers, rate))


def adapter_on(run: study.Run, module: nnx.Module) -> peft.Adapted:
    """A base with a LoRA, the same for each base of a seed.

    Args:
      run: of the arm.
      module: the base.
    """
    rank = run.config.rank
    method = peft.lora(rank, 2.0 * rank, targets=["c_attn"])
    return peft.apply(module, method, jax.random.key(run.seed))


def tuned(
    run: study.Run, start: Tuned, clients: list[Rows], rounds: int | None = None
) -> Tuned:
    """FedAvg of what is trained, with Adam at the clients.

    Args:
      run: has the rate.
      start: where it begins.
      clients: texts of each.
      rounds: default: those of one task.
    """
    config, task = run.config, language_modeling(start.adapted)
    walk = {"local_steps": config.local_steps, "batch_size": config.batch_size}
    algorithm = ffm.fedavg(task, optax.adam(run["rate"]), **walk)
    rounds = run.rounds if rounds is None else rounds
    return _simulated(run, algorithm, clients, start, rounds, config.clients)


def _simulated(
    run: study.Run,
    algorithm: ffm.Algorithm,
    clients: list[Rows],
    start: Tuned,
    rounds: int,
    cohort: int | None = None,
) -> Tuned:
    """A run on one device: the steps are too small for several."""
    found = run.simulate(
        algorithm,
        clients,
        start.delta,
        rounds,
        backbone=start.adapted.backbone,
        cohort_size=min(cohort or len(clients), len(clients)),
        devices=1,
    )
    return Tuned(start.adapted, found.state.delta)


def losses(model: Tuned, parts: Sequence[Rows]) -> np.ndarray:
    """f64[parts], nats a token.

    Args:
      model: of the server.
      parts: texts of each task.
    """
    return np.array([model.loss(part) for part in parts])


def in_turn(
    run: study.Run,
    tasks: Sequence[Task],
    start: Tuned,
    after: Callable[[Tuned], Tuned],
) -> tuple[np.ndarray, list[Tuned]]:
    """Learns one task after the other.

    Args:
      run: of the arm.
      tasks: in their order.
      start: before the first task.
      after: what the next task begins with, of the model after a task.

    Returns:
      (losses f64[T + 1, T] before the first and after each task, the model after each).
    """
    tests = [task.test for task in tasks]
    table, model, found = [losses(start, tests)], start, []
    for task in tasks:
        found.append(tuned(run, model, task.clients))
        table.append(losses(found[-1], tests))
        model = after(found[-1])
    return np.stack(table), found
