"""FedDPA at test time: each input has its own mix of the two adapters, on any task.

Yang, Long, Shen, Jiang, Blumenstein, 2024, arXiv 2403.19211, section 4.3. A client of
one task is asked questions of another: the less they resemble its own data, the more of
the shared adapter they get.

    a = omega_max * mean over its k instances of cos(features of the input, of these)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.evaluate import evaluate
from fedjax_fm.peft.dual_lora import instance_mix
from fedjax_fm.types import Task, Tree

Features = Callable[[Tree, Tree, dict[str, jax.Array], Any], jax.Array]
Weighs = Literal["private", "shared"]


class Instances(NamedTuple):
    """What a task of `by_instance` takes as its delta.

    Attributes:
      adapters: with `shared`, `private` and `mix`, as `simulator.model(state, client)`
        of FedDPA gives them; the mix is not read.
      local: {column: [k, ...]}, some training examples of the client.
    """

    adapters: Any
    local: Mapping[str, Any]


class ShiftedScores(NamedTuple):
    """What clients' models are worth on their own task and on those of others.

    Attributes:
      own: f64[N], every client's score on its own task.
      shifted: f64[N], its mean score over the other tasks, each of which counts once.
      table: f64[N, M], every client's score on every task.
      tasks: M names, the columns of the table.
    """

    own: np.ndarray
    shifted: np.ndarray
    table: np.ndarray
    tasks: tuple[str, ...]


def by_instance(
    task: Task,
    features: Features,
    *,
    omega_max: float = 0.5,
    omega_weighs: Weighs = "private",
) -> Task:
    """The task of both adapters, each example with a mix of its own.

    Args:
      task: the personal task, whose delta has `shared`, `private` and `mix`.
      features: `(private adapter, backbone, batch, key) -> f32[B, d]`, what is compared;
        for language models `tasks.language_features(adapted)`.
      omega_max: in [0, 1], the mix of an input that is like the client's own.
      omega_weighs: as for `peft.instance_mix`: "private" as the paper says, "shared" as
        the released script has it.

    Returns:
      A task whose delta is `Instances`; the metric `mix` is a.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Yang et al. 2024, arXiv 2403.19211, "instance-wise dynamic weighting".

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm.algorithms.feddpa import Adapters
      >>> def loss(adapters, backbone, batch, key):
      ...     g, p, a = adapters
      ...     return (1 - a) * g + a * p - batch["y"], {}
      >>> def features(private, backbone, batch, key):
      ...     return batch["x"]
      >>> task = by_instance(Task(loss), features)
      >>> adapters = Adapters(shared=jnp.float32(0), private=jnp.float32(8), mix=0.5)
      >>> delta = Instances(adapters, {"x": jnp.array([[1.0, 0.0]])})
      >>> batch = {"x": jnp.array([[3.0, 0.0], [0.0, 2.0]]), "y": jnp.zeros(2)}
      >>> losses, metrics = task.loss(delta, (), batch, None)
      >>> losses.tolist(), metrics["mix"].tolist()  # of its own kind, of another
      ([4.0, 0.0], [0.5, 0.0])
    """
    checks.real("omega_max", omega_max, least=0, most=1)
    checks.choice("omega_weighs", omega_weighs, ("private", "shared"))
    if not callable(features):
        raise TypeError(
            "expected features(private, backbone, batch, key), got "
            f"features={checks.shown(features)}"
        )

    def loss(delta: Instances, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        adapters, local = delta
        query = features(adapters.private, backbone, batch, key)
        own = features(adapters.private, backbone, dict(local), key)
        mix = instance_mix(query, own, omega_max, omega_weighs)
        mixed = adapters._replace(mix=mix)
        losses, metrics = task.loss(mixed, backbone, batch, key)
        return losses, {**metrics, "mix": mix}

    return Task(loss, task.weight)


def shifted_scores(
    task: Task,
    models: Callable[[int], tuple[Any, Tree]],
    local: Sequence[Mapping[str, Any]],
    tests: Mapping[str, Mapping[str, Any]],
    own: Sequence[str],
    *,
    features: Features | None,
    score: str = "accuracy",
    omega_max: float = 0.5,
    omega_weighs: Weighs = "private",
    batch_size: int = 256,
) -> ShiftedScores:
    """Scores every client's model on its own task and on all others.

    Args:
      task: the personal task, as for `by_instance`.
      models: `client -> (adapters, backbone)`: `functools.partial(simulator.model,
        state)` of FedDPA.
      local: by client, {column: [k, ...]}: training examples that inputs are compared
        with, as many for each client; five in the authors' code.
      tests: by name of a task, {column: [n, ...]}.
      own: by client, the name of its task.
      features: as for `by_instance`; None: no dynamic mix, all inputs get the model's.
      score: "loss" or a metric of the task.
      omega_max: as for `by_instance`.
      omega_weighs: as for `by_instance`.
      batch_size: examples that are computed at once.

    Returns:
      `ShiftedScores`.

    Raises:
      TypeError, ValueError: an argument is of another kind, a client's task is none of
        the tests, or there are no other tasks.

    References:
      Yang et al. 2024, arXiv 2403.19211, section 5.1: personalisation, and test-time
      personalisation.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm.algorithms.feddpa import Adapters
      >>> def loss(adapters, backbone, batch, key):
      ...     g, p, a = adapters
      ...     return ((1 - a) * g + a * p - batch["y"]) ** 2, {}
      >>> def models(client):
      ...     return Adapters(jnp.float32(0), jnp.float32(2), jnp.float32(0.5)), ()
      >>> tests = {
      ...     "sums": {"x": np.array([[1.0, 0.0]]), "y": np.array([1.0])},
      ...     "names": {"x": np.array([[0.0, 1.0]]), "y": np.array([0.0])},
      ... }
      >>> found = shifted_scores(
      ...     Task(loss), models, [{"x": np.array([[5.0, 0.0]])}], tests, ["sums"],
      ...     features=lambda private, backbone, batch, key: batch["x"], score="loss",
      ... )
      >>> found.own.tolist(), found.shifted.tolist()  # the mix is 1/2, and 0
      ([0.0], [0.0])
    """
    names = tuple(tests)
    if len(names) < 2:
        raise ValueError(f"expected tests of two tasks or more, got {list(names)}")
    unknown = sorted(set(own) - set(names))
    if unknown:
        raise ValueError(f"expected own tasks among {list(names)}, got {unknown}")
    if len(local) != len(own):
        raise ValueError(
            f"expected local examples of each of {len(own)} clients, got {len(local)}"
        )
    how = {"omega_max": omega_max, "omega_weighs": omega_weighs}
    chosen = task if features is None else by_instance(task, features, **how)
    table = np.empty((len(own), len(names)))
    for client, examples in enumerate(local):
        adapters, backbone = models(client)
        delta = adapters if features is None else Instances(adapters, examples)
        for column, name in enumerate(names):
            arrays = tests[name]
            scores = evaluate(chosen, delta, backbone, arrays, batch_size=batch_size)
            if score not in scores:
                raise ValueError(
                    f"expected score to be one of {sorted(scores)}, got score={score!r}"
                )
            values, weights = scores[score], scores.get("weight")
            table[client, column] = np.average(values, weights=weights)
    is_own = np.array([[name == mine for name in names] for mine in own])
    others = np.where(is_own, 0.0, table).sum(axis=1) / (len(names) - 1)
    return ShiftedScores(own=table[is_own], shifted=others, table=table, tasks=names)
