"""Knowledge that travels as outputs on public examples: what FedMD and FedDF share.

Models of different architectures have no weights in common, but they answer the same
questions. Answers are averaged as logits or as probabilities, which are not the same; a
student then moves its own answers towards the mean.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.population.permutation import permuted
from fedjax_fm.types import Task, Tree

Logits = Callable[[Tree, Tree, dict[str, jax.Array]], jax.Array]
Average = Literal["logits", "probabilities"]
Distance = Callable[[jax.Array, jax.Array], jax.Array]


class Architecture(NamedTuple):
    """One kind of model in a federation of several.

    Its number is its place in the tuples of deltas and backbones.
    """

    task: Task
    logits: Logits  # (delta, backbone, batch) -> f32[B, K], the same K classes for all
    optimizer: ClientOptimizer


def checked_architectures(
    architectures: Sequence[Architecture],
) -> tuple[Architecture, ...]:
    """The same, each with a task whose loss is looked at while a round is traced.

    Raises for what is none.
    """
    found = []
    for number, one in enumerate(architectures):
        name = f"architectures[{number}]"
        checks.instance(
            name, one, Architecture, "write Architecture(task, logits, optimizer)"
        )
        checks.client_optimizer(f"{name}.optimizer", one.optimizer)
        found.append(one._replace(task=checked(one.task)))
    return tuple(found)


def kl(logits: jax.Array, target: jax.Array) -> jax.Array:
    """f32[B]: KL(softmax(target) || softmax(logits)).

    Its gradient in the logits is softmax(logits) - softmax(target).

    Args:
      logits, target: f32[B, K].
    """
    teacher = jax.nn.log_softmax(target)
    return jnp.sum(jnp.exp(teacher) * (teacher - jax.nn.log_softmax(logits)), axis=-1)


def mean_absolute(logits: jax.Array, target: jax.Array) -> jax.Array:
    """f32[B]: mean over the classes of |logits - target|."""
    return jnp.mean(jnp.abs(logits - target), axis=-1)


def opinion(logits: jax.Array, average: Average) -> jax.Array:
    """f32[B, K]: what is averaged."""
    return logits if average == "logits" else jax.nn.softmax(logits)


def agreed(mean: jax.Array, average: Average) -> jax.Array:
    """f32[B, K]: the logits of a mean of opinions."""
    return (
        mean
        if average == "logits"
        else jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny))
    )


def all_logits(
    logits: Logits,
    delta: Tree,
    backbone: Tree,
    examples: dict[str, jax.Array],
    batch_size: int,
) -> jax.Array:
    """f32[n, K]: of all examples, a batch at a time."""
    n = n_rows(examples)
    if n <= batch_size:
        return logits(delta, backbone, examples)
    rows = jnp.minimum(jnp.arange(-(-n // batch_size) * batch_size), n - 1).reshape(
        -1, batch_size
    )
    found = jax.lax.map(
        lambda rows: logits(delta, backbone, take(examples, rows)), rows
    )
    return found.reshape(-1, found.shape[-1])[:n]


def distiller(
    logits: Logits,
    backbone: Tree,
    examples: dict[str, jax.Array],
    target: jax.Array,
    *,
    distance: Distance,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    key: jax.Array,
) -> Callable[[jax.Array, tuple[Tree, Tree]], tuple[Tree, Tree]]:
    """`step(i, (student, optimizer state))`.

    Step i of moving a student's answers towards `target` f32[n, K].

    Step i belongs to epoch i // ceil(n / batch_size); each is a fresh shuffle, its last
    batch short.
    """
    n = n_rows(examples)
    per_epoch = -(-n // batch_size)

    def step(i, carry):
        student, state = carry
        positions = i % per_epoch * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        real, rows = positions < n, jnp.minimum(positions, n - 1)
        if per_epoch > 1:  # in one batch any order is as good
            rows = permuted(
                jax.random.fold_in(key, i // per_epoch), jnp.int32(n), rows, n
            )

        def loss(student):
            losses = distance(
                logits(student, backbone, take(examples, rows)), target[rows]
            )
            return jnp.sum(jnp.where(real, losses, 0.0)) / jnp.sum(real)

        updates, state = optimizer.update(jax.grad(loss)(student), state, student)
        return optax.apply_updates(student, updates), state

    return step


def take(examples: dict[str, jax.Array], rows: jax.Array) -> dict[str, jax.Array]:
    """These rows of every array."""
    return {name: jnp.asarray(array)[rows] for name, array in examples.items()}


def n_rows(examples: dict[str, jax.Array]) -> int:
    """How many examples there are."""
    return next(iter(examples.values())).shape[0]


def until_plateau(
    step: Callable,
    start: tuple[Tree, Tree],
    most: int,
    score: Callable[[Tree], jax.Array],
    every: int,
    patience: int,
) -> Tree:
    """The best student at any look, one every `every` steps, until none was better for
    `patience` steps or `most` are done.
    """

    def on(carry):
        i, running, best, highest, when = carry
        end = jnp.minimum(i + every, most)
        running = jax.lax.fori_loop(i, end, step, running)
        found = score(running[0])
        better = found > highest
        best = trees.select(better, running[0], best)
        return (
            end,
            running,
            best,
            jnp.where(better, found, highest),
            jnp.where(better, end, when),
        )

    first = (jnp.int32(0), start, start[0], jnp.float32(-jnp.inf), jnp.int32(0))
    return jax.lax.while_loop(
        lambda carry: (carry[0] < most) & (carry[0] - carry[4] < patience), on, first
    )[2]


def checked_groups(
    groups: Sequence[int] | np.ndarray, n_architectures: int, public: dict, average: str
) -> np.ndarray:
    """i32[N], the architecture of each client.

    ValueError where it, the public examples or the average make no sense.
    """
    sizes = {name: len(array) for name, array in public.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            f"expected public examples, as many in each array, got {sizes}"
        )
    checks.choice("average", average, ("logits", "probabilities"))
    try:
        found = np.asarray(groups)
    except ValueError:  # lists of several lengths
        found = np.zeros(())
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer) or not found.size:
        raise ValueError(
            "expected the number of an architecture for each client, got "
            f"{found.dtype}{list(found.shape)}"
        )
    if found.min() < 0 or found.max() >= n_architectures:
        raise ValueError(
            f"expected groups in [0, {n_architectures}), got groups from "
            f"{found.min()} to {found.max()}"
        )
    return found.astype(np.int32)


def check_sizes(
    delta: Tree, groups: np.ndarray, n_architectures: int, n_clients: int
) -> None:
    """ValueError where deltas or clients are not as many as the factory was told."""
    if not isinstance(delta, tuple) or len(delta) != n_architectures:
        found = (
            f"a tuple of {len(delta)}"
            if isinstance(delta, tuple)
            else type(delta).__name__
        )
        raise ValueError(
            f"expected delta to be a tuple of {n_architectures}, one for each "
            f"architecture, got {found}"
        )
    if len(groups) != n_clients:
        raise ValueError(
            f"groups are those of {len(groups)} clients, the population has {n_clients}"
        )
