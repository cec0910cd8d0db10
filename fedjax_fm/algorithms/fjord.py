"""FjORD: Fair and Accurate Federated Learning with Ordered Dropout.

Horvath, Laskaridis, Almeida, Leontiadis, Venieris, Lane, Fair and Accurate Federated
Learning under heterogeneous targets with Ordered Dropout, 2021, arXiv 2102.13451; the
server is that of the authors' Flower code.

    client of cap c, each step:
        p ~ U{q in P: q <= c};  one step on loss(prefix p)      `_of_a_drawn_width`
        with distillation, alpha and T, on                      `_at_width`
            CE(f_c, y) + (1 - alpha) CE(f_p, y) + alpha KL(stop(f_c) || f_p; T)
    server, for each width p of P from the widest to the narrowest:
        prefix p <- sum n_k w_k / sum n_k over the clients with c >= p; entries that no
        client holds stay                                       `by_width.averaged`
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.by_width import Rates, by_width, widths_of
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.nested import Prefixes, check_width
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.types import Algorithm, Task, Tree


class Distillation(NamedTuple):
    """The client's widest model teaches the one that was drawn, on the same batch.

    Attributes:
      logits: `(delta, backbone, batch, key) -> f32[B, ..., K]`; the divergence is a
        mean over the axes in between, between softmax(logits / T), without a factor
        T^2.
      alpha: what the divergence counts, 0 to 1; the drawn model's own loss counts 1 -
        alpha.
      temperature: T, above 0.
      teacher_learns: the widest model learns from the labels by a term of its own,
        which the paper found to help and the authors' code has; False leaves it out.
        In the divergence it is a target only.
    """

    logits: Callable[[Tree, Tree, dict[str, jax.Array], jax.Array], jax.Array]
    alpha: float = 1.0
    temperature: float = 1.0
    teacher_learns: bool = True

    def checked(self) -> "Distillation":
        """Self, or ValueError naming the value that makes no sense."""
        checks.real("alpha", self.alpha, least=0, most=1)
        checks.real("temperature", self.temperature, above=0)
        checks.flag("teacher_learns", self.teacher_learns)
        if self.alpha == 1 and not self.teacher_learns:
            raise ValueError(
                "with alpha=1.0 and teacher_learns=False no model would see a label"
            )
        return self


def fjord(
    task: Task,
    client_optimizer: ClientOptimizer,
    prefixes: Prefixes,
    widths: Sequence[float],
    caps: Rates,
    *,
    distillation: Distillation | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Ordered dropout: every step trains a prefix of what its client can carry.

    A step costs what its width costs where a device computes one client at a time, as
    CPUs do for models of any size; a block of several clients computes each step at all
    widths below the cap.

    Sends: the slice of the cap down, its change up.

    Args:
      task: the loss, on slices: it reads its widths from the shapes of its arrays.
      client_optimizer: as in `fedavg`. Entries outside of the step's prefix see a zero
        gradient; momentum and weight decay move them still.
      prefixes: which axes get narrower, from `nested.nest`. Batch norms would need
        statistics for each width: use layer norms, or none.
      widths: P, what a step may draw.
      caps: of each client, [N], or {cap: share}, drawn anew each round; every cap is
        one of `widths`.
      distillation: of the widest model into the drawn one; None trains by the loss
        alone.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `by_width.ByWidthState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a cap is
        none of the widths.

    References:
      Horvath et al. 2021, arXiv 2102.13451, algorithm 1.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return (w.sum() - batch["y"]) ** 2, {}
      >>> prefixes = ffm.algorithms.nest(jnp.zeros(4), {"": ("width",)})
      >>> how = {"widths": (0.5, 1.0), "caps": [0.5, 0.5], "batch_size": 1}
      >>> method = fjord(Task(loss), optax.sgd(0.1), prefixes, local_steps=5, **how)
      >>> clients = [{"y": jnp.ones(1)}, {"y": jnp.ones(1)}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.zeros(4)), 2)
      >>> [round(float(w), 1) for w in state.delta]  # no client holds the second half
      [0.5, 0.5, 0.0, 0.0]
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    if not isinstance(widths, Collection) or not len(widths):
        raise ValueError(f"expected at least one width, got widths={widths!r}")
    for width in widths:
        check_width(width)
    occurring = set(widths_of(caps))
    if strange := occurring - set(widths):
        raise ValueError(
            f"expected every cap to be one of widths={tuple(widths)}, "
            f"got caps of {sorted(strange)}"
        )
    if distillation is not None:
        distillation.checked()

    def work_at(cap: float):
        below = [width for width in sorted(set(widths)) if width <= cap]
        tasks = [_at_width(local.task, prefixes, w, distillation) for w in below]
        narrowest = local._replace(task=tasks[0])  # its metrics are those of all

        def work(backbone, delta, data, key):
            gradient = _of_a_drawn_width(tasks)
            trained, metrics = narrowest.run(
                delta, backbone, data, key, gradient=gradient
            )
            return trained, metrics, local.weight(data)

        return work

    return by_width(work_at, prefixes, caps, local.batches)


def _at_width(
    task: Task, prefixes: Prefixes, width: float, distillation: Distillation | None
) -> Task:
    """The task of one step's draw, on the slice of the cap."""

    def loss(delta, backbone, batch, key):
        part = prefixes.take(delta, width)
        losses, metrics = task.loss(part, backbone, batch, key)
        if distillation is None:
            return losses, metrics
        logits, temperature = distillation.logits, distillation.temperature

        def soften(tree):
            predicted = logits(tree, backbone, batch, key)
            return jax.nn.log_softmax(predicted / temperature)

        student, teacher = soften(part), soften(delta)
        divergences = _divergence(jax.lax.stop_gradient(teacher), student)
        divergence = divergences.reshape(divergences.shape[0], -1).mean(axis=1)
        losses = (1 - distillation.alpha) * losses + distillation.alpha * divergence
        if distillation.teacher_learns:
            losses += task.loss(delta, backbone, batch, key)[0]
        return losses, metrics

    return Task(loss, task.weight)


def _divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """KL(teacher || student) of log-probabilities, over the last axis."""
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def _of_a_drawn_width(tasks: list[Task]) -> Callable:
    """A gradient for `local.train`: of a task drawn for each step.

    Differentiated inside of each branch: the gradient of a `switch` would fill what the
    other branches would have kept for theirs with zeros, which costs more than a narrow
    step. The loss gets the step's key itself, as in FedAvg.
    """

    def of_task(task: Task):
        def loss(delta, backbone, batch, mask, key):
            return masked_loss(task, delta, backbone, batch=batch, mask=mask, key=key)

        return jax.grad(loss, has_aux=True)

    branches = [of_task(task) for task in tasks]

    def gradient(delta, backbone, batch, mask, key):
        width_key = stream(key, Stream.DRAWN_WIDTH)
        drawn = jax.random.randint(width_key, (), 0, len(branches))
        operands = (delta, backbone, batch, mask, key)
        return jax.lax.switch(drawn, branches, *operands)

    return gradient
