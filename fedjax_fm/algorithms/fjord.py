"""FjORD: Fair and Accurate Federated Learning under heterogeneous targets with Ordered Dropout.

Horvath, Laskaridis, Almeida, Leontiadis, Venieris, Lane, 2021, arXiv 2102.13451; server
as in the authors' Flower code.

    client of cap c, each step:  p ~ U{q in P: q <= c};  one step on loss(prefix p)
        with distillation:  CE(f_c, y) + (1 - alpha) CE(f_p, y) + alpha KL(stop(f_c) || f_p; T)
    server, for each width of P from the widest to the narrowest:
        prefix <- sum n_k w_k / sum n_k over the clients with c >= p; what nobody held stays
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.by_width import Rates, by_width, widths_of
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    check_trainable,
    checked,
    client_weight,
    masked_loss,
    optimizer_of,
)
from fedjax_fm.algorithms.nested import Prefixes, check_width
from fedjax_fm.types import Algorithm, Batches, ClientData, Task, Tree

# what a step's key is folded with to draw its width; the loss gets the key itself, as
# in FedAvg
WIDTH = 0x0D


class Distillation(NamedTuple):
    """The client's widest model teaches the one that was drawn, on the same batch.

    `logits(delta, backbone, batch, key) -> f32[B, ..., K]`; the divergence is a mean
    over the axes in between, between softmax(logits / T), without a factor T^2. The
    teacher is a target only: it learns from the labels by its own term, which the paper
    found to help and the authors' code has; False leaves it out.
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

    Args:
      task: the loss, on slices: it reads its widths from the shapes of its arrays.
      client_optimizer: as in `fedavg`. Entries outside of the step's prefix see a zero
        gradient; momentum and weight decay move them still.
      prefixes: which axes get narrower, from `nested.nest`. Batch norms would need
        statistics for each width: use layer norms, or none.
      widths: P, what a step may draw.
      caps: of each client, [N], or {cap: share}, drawn anew each round; every cap is
        one of `widths`.
      distillation: of the widest model into the drawn one; None trains by the loss alone.
      epochs, local_steps, batch_size: as in `fedavg`.

    Sends: the slice of the cap down, its change up.
    """
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()
    if not isinstance(widths, Collection) or not len(widths):
        raise ValueError(f"expected at least one width, got widths={widths!r}")
    for width in widths:
        check_width(width)
    if strange := set(widths_of(caps)) - set(widths):
        raise ValueError(
            f"expected every cap to be one of widths={tuple(widths)}, got caps of {sorted(strange)}"
        )
    if distillation is not None:
        distillation.checked()

    def local(cap: float):
        drawn = [width for width in sorted(set(widths)) if width <= cap]
        tasks = [_at_width(task, prefixes, width, distillation) for width in drawn]

        def work(backbone, delta, data, key):
            trained, metrics = _train(
                tasks, client_optimizer, delta, backbone, data, key
            )
            return trained, metrics, client_weight(task, data)

        return work

    return by_width(local, prefixes, caps, batches)


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
            return jax.nn.log_softmax(logits(tree, backbone, batch, key) / temperature)

        student, teacher = soften(part), jax.lax.stop_gradient(soften(delta))
        divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
        divergence = divergence.reshape(divergence.shape[0], -1).mean(axis=1)
        losses = (1 - distillation.alpha) * losses + distillation.alpha * divergence
        if distillation.teacher_learns:
            losses += task.loss(delta, backbone, batch, key)[0]
        return losses, metrics

    return Task(loss, task.weight)


def _train(
    tasks: list[Task],
    optimizer: ClientOptimizer,
    delta: Tree,
    backbone: Tree,
    data: ClientData,
    key: jax.Array,
):
    """`local.train` with a task drawn for each step.

    Differentiated inside of each branch: the gradient of a `switch` would fill what the
    other branches would have kept for theirs with zeros, which costs more than a narrow
    step.
    """
    check_trainable(delta)
    optimizer = optimizer_of(optimizer, data.round)
    gradients = [
        jax.grad(
            lambda delta, *rest, t=task: masked_loss(t, delta, *rest), has_aux=True
        )
        for task in tasks
    ]

    def step(i, carry):
        delta, state, sums = carry
        step_key = jax.random.fold_in(key, i)
        drawn = jax.random.randint(
            jax.random.fold_in(step_key, WIDTH), (), 0, len(tasks)
        )
        found, part = jax.lax.switch(
            drawn, gradients, delta, backbone, *data.batch(i), step_key
        )
        updates, state = optimizer.update(found, state, delta)
        return (
            optax.apply_updates(delta, updates),
            state,
            jax.tree.map(jnp.add, sums, part),
        )

    shapes = jax.eval_shape(
        lambda: masked_loss(tasks[0], delta, backbone, *data.batch(jnp.int32(0)), key)[
            1
        ]
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    delta, _, sums = jax.lax.fori_loop(
        0, data.n_steps, step, (delta, optimizer.init(delta), zeros)
    )
    return delta, sums
