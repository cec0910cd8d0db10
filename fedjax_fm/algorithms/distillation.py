"""Distillation on public examples, the part that FedMD and FedDF share.

Models of different architectures have no weights in common, but all predict the same
classes. Their predictions on public examples are averaged, as logits or as
probabilities, which is not the same; a student then moves its own towards the mean.
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

    Attributes:
      task: the loss that clients of this architecture train with.
      logits: `(delta, backbone, batch) -> f32[B, K]`, the same K classes for all
        architectures.
      optimizer: of local training, as `client_optimizer` of `fedavg`.
    """

    task: Task
    logits: Logits
    optimizer: ClientOptimizer


class Plateau(NamedTuple):
    """What `until_plateau` passes from look to look."""

    steps: jax.Array  # i32[], done so far
    running: tuple[Tree, Tree]  # (student, optimizer state)
    best: Tree  # the student with the highest score
    score: jax.Array  # f32[], of the best
    found_at: jax.Array  # i32[], the steps that the best had made


def checked_architectures(
    architectures: Sequence[Architecture],
) -> tuple[Architecture, ...]:
    """The architectures, each with a task whose loss is checked while it is traced.

    Args:
      architectures: as a method was given them.

    Returns:
      As many architectures.

    Raises:
      TypeError: one is no Architecture, its optimizer is not optax's, or its task is no
        Task.
    """
    found = []
    for number, one in enumerate(architectures):
        name = f"architectures[{number}]"
        checks.instance(
            name, one, Architecture, "write Architecture(task, logits, optimizer)"
        )
        checks.client_optimizer(f"{name}.optimizer", one.optimizer)
        task = checked(one.task)
        found.append(one._replace(task=task))
    return tuple(found)


def kl(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The divergence KL(softmax(target) || softmax(logits)).

    Its gradient in the logits is softmax(logits) - softmax(target).

    Args:
      logits: f32[B, K], the student's.
      target: f32[B, K], the teacher's logits.

    Returns:
      f32[B].
    """
    student, teacher = jax.nn.log_softmax(logits), jax.nn.log_softmax(target)
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def mean_absolute(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The mean over the classes of |logits - target|.

    Args:
      logits: f32[B, K], the student's.
      target: f32[B, K], the teacher's logits.

    Returns:
      f32[B].
    """
    distances = jnp.abs(logits - target)
    return jnp.mean(distances, axis=-1)


def predictions(logits: jax.Array, average: Average) -> jax.Array:
    """What is averaged over models: their logits or their probabilities.

    Args:
      logits: f32[B, K], of one model.
      average: which of the two.

    Returns:
      f32[B, K].
    """
    return logits if average == "logits" else jax.nn.softmax(logits)


def consensus(mean: jax.Array, average: Average) -> jax.Array:
    """The logits of a mean of `predictions`.

    Args:
      mean: f32[B, K], over models.
      average: what it is the mean of.

    Returns:
      f32[B, K], finite: a class of probability 0 has the logit of the smallest number.
    """
    if average == "logits":
        return mean
    tiny = jnp.finfo(mean.dtype).tiny
    return jnp.log(jnp.maximum(mean, tiny))


def all_logits(
    logits: Logits,
    delta: Tree,
    backbone: Tree,
    examples: dict[str, jax.Array],
    batch_size: int,
) -> jax.Array:
    """f32[n, K]: a model's logits of all examples, a batch at a time.

    Args:
      logits: `(delta, backbone, batch) -> f32[B, K]`.
      delta: the model's trainable tree.
      backbone: its frozen one.
      examples: {name: [n, ...]}.
      batch_size: examples at a time; the last batch repeats the last example.

    Returns:
      f32[n, K].
    """
    n = n_rows(examples)
    if n <= batch_size:
        return logits(delta, backbone, examples)
    positions = jnp.arange(-(-n // batch_size) * batch_size)
    rows = jnp.minimum(positions, n - 1).reshape(-1, batch_size)

    def of_batch(rows):
        return logits(delta, backbone, take(examples, rows))

    batches = jax.lax.map(of_batch, rows)
    return batches.reshape(-1, batches.shape[-1])[:n]


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
    """A step that moves a student's logits towards a target.

        w <- optimizer(w, grad mean distance(logits(w, x), target(x)))

    Step i belongs to epoch i // ceil(n / batch_size). Each epoch is shuffled anew; its
    last batch may be short.

    Args:
      logits: `(student, backbone, batch) -> f32[B, K]`.
      backbone: the student's.
      examples: {name: [n, ...]}.
      target: f32[n, K], logits.
      distance: `(logits, target) -> f32[B]`.
      optimizer: of the student.
      batch_size: examples a step.
      key: of the shuffles.

    Returns:
      `step(i, (student, optimizer state)) -> (student, optimizer state)`.
    """

    def losses(student, rows):
        predicted = logits(student, backbone, take(examples, rows))
        return distance(predicted, target[rows])

    how = {"optimizer": optimizer, "batch_size": batch_size, "key": key}
    return descent(losses, n_rows(examples), **how)


def descent(
    losses: Callable[[Tree, jax.Array], jax.Array],
    n: int,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    key: jax.Array,
) -> Callable[[jax.Array, tuple[Tree, Tree]], tuple[Tree, Tree]]:
    """A step on the mean loss of a batch of public examples.

    Step i belongs to epoch i // ceil(n / batch_size). Each epoch is shuffled anew; its
    last batch may be short.

    Args:
      losses: `(student, rows i32[B]) -> f32[B]`.
      n: public examples.
      optimizer: of the student.
      batch_size: examples a step.
      key: of the shuffles.

    Returns:
      `step(i, (student, optimizer state)) -> (student, optimizer state)`.
    """
    per_epoch = -(-n // batch_size)

    def rows_of(i, positions):
        rows = jnp.minimum(positions, n - 1)
        if per_epoch == 1:  # in one batch any order is as good
            return rows
        epoch_key = jax.random.fold_in(key, i // per_epoch)
        return permuted(epoch_key, jnp.int32(n), rows, n)

    def step(i, carry):
        student, state = carry
        in_batch = jnp.arange(batch_size, dtype=jnp.int32)
        positions = i % per_epoch * batch_size + in_batch
        rows, real = rows_of(i, positions), positions < n

        def loss(student):
            total = jnp.sum(jnp.where(real, losses(student, rows), 0.0))
            return total / jnp.sum(real)

        gradients = jax.grad(loss)(student)
        updates, state = optimizer.update(gradients, state, student)
        return optax.apply_updates(student, updates), state

    return step


def take(examples: dict[str, jax.Array], rows: jax.Array) -> dict[str, jax.Array]:
    """These rows of every array.

    Args:
      examples: {name: [n, ...]}.
      rows: i32[B].

    Returns:
      {name: [B, ...]}.
    """
    return {name: jnp.asarray(array)[rows] for name, array in examples.items()}


def n_rows(examples: dict[str, jax.Array]) -> int:
    """How many examples there are.

    Args:
      examples: {name: [n, ...]}.

    Returns:
      n.
    """
    arrays = iter(examples.values())
    return next(arrays).shape[0]


def until_plateau(
    step: Callable,
    start: tuple[Tree, Tree],
    most: int,
    score: Callable[[Tree], jax.Array],
    every: int,
    patience: int,
) -> Tree:
    """Trains until the score no longer rises, and gives the student that scored best.

    Args:
      step: `(i, (student, optimizer state)) -> (student, optimizer state)`.
      start: (student, optimizer state).
      most: steps, at most.
      score: `student -> f32[]`; the higher, the better.
      every: steps between two looks at the score.
      patience: steps without a better score after which training ends.

    Returns:
      The best student at any look.
    """

    def goes_on(now: Plateau):
        return (now.steps < most) & (now.steps - now.found_at < patience)

    def train_and_look(now: Plateau) -> Plateau:
        end = jnp.minimum(now.steps + every, most)
        running = jax.lax.fori_loop(now.steps, end, step, now.running)
        found = score(running[0])
        better = found > now.score
        return Plateau(
            steps=end,
            running=running,
            best=trees.select(better, running[0], now.best),
            score=jnp.where(better, found, now.score),
            found_at=jnp.where(better, end, now.found_at),
        )

    first = Plateau(
        steps=jnp.int32(0),
        running=start,
        best=start[0],
        score=jnp.float32(-jnp.inf),
        found_at=jnp.int32(0),
    )
    return jax.lax.while_loop(goes_on, train_and_look, first).best


def checked_groups(
    groups: Sequence[int] | np.ndarray, n_architectures: int, public: dict, average: str
) -> np.ndarray:
    """i32[N]: the architecture of each client.

    Args:
      groups: [N], as a method was given them.
      n_architectures: how many there are.
      public: {name: [n, ...]}, the public examples.
      average: "logits" or "probabilities".

    Returns:
      The groups as an array.

    Raises:
      ValueError: a group without an architecture, public examples that are none or not
        as many in each array, another average.
    """
    sizes = {name: len(array) for name, array in public.items()}
    different = set(sizes.values())
    if len(different) != 1 or 0 in different:
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
    """Compares a simulator's deltas and clients with what the method was made for.

    Args:
      delta: a tuple with one tree for each architecture.
      groups: i32[N].
      n_architectures: how many there are.
      n_clients: of the population.

    Raises:
      ValueError: deltas or clients are more or fewer.
    """
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
