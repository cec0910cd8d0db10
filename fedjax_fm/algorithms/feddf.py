"""FedDF: Ensemble Distillation for Robust Model Fusion in Federated Learning.

Lin, Kong, Stich, Jaggi, 2020, arXiv 2006.07242, algorithms 1 and 3. Clients of group g
hold models f_g; K of any group come:

    w_g <- sum_k p_k w_k, k in g, p_k by examples;    zbar(x) = 1/K sum_k f(w_k, x), k
    of all groups server, N steps on unlabelled x:  w_g <- w_g - eta * grad
    KL(softmax(zbar(x)) || softmax(f_g(w_g, x))),   each g
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms import distillation
from fedjax_fm.algorithms.distillation import Architecture, Average, n_rows
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.types import Algorithm, Exchange, Reduce, Tree, Unbilled


class Validation(NamedTuple):
    """When distillation stops before its last step: accuracy has not risen for `patience` steps.

    The best student stays.
    """

    examples: dict[str, Any]  # {name: [m, ...]}
    labels: Any  # i32[m]
    every: int = 100  # steps between two looks
    patience: int = 1000  # steps; the paper's

    def checked(self) -> "Validation":
        """Self, or an error naming the value that makes no sense."""
        checks.whole("every", self.every, least=1)
        checks.whole("patience", self.patience, least=1)
        if self.every > self.patience:
            raise ValueError(
                f"expected every <= patience, got every={self.every}, patience={self.patience}"
            )
        return self


class Held(NamedTuple):
    """What the server has besides models; never changed."""

    groups: jax.Array  # i32[N]
    public: dict[str, jax.Array]  # {name: [n, ...]}
    backbones: tuple[Tree, ...]
    validation: Any  # (examples, labels) or ()


class Gathered(NamedTuple):
    """Sums over the clients of one group."""

    updates: Tree  # of n_k (w_g - w_k)
    examples: jax.Array  # f32[], of n_k
    opinions: jax.Array  # f32[n, K], of what each w_k says of the public examples
    teachers: jax.Array  # f32[], of 1


class FedDFState(NamedTuple):
    """Server state; between rounds `gathered` is empty."""

    delta: tuple[Tree, ...]  # one for each architecture
    held: Held
    gathered: tuple[Gathered, ...] = ()


class Message(NamedTuple):
    """Only the model is billed."""

    delta: Tree
    groups: Any


def feddf(
    architectures: Sequence[Architecture],
    groups: Sequence[int] | np.ndarray,
    public: dict[str, Any],
    *,
    backbones: Sequence[Tree] | None = None,
    server_steps: int = 1000,
    server_optimizer: optax.GradientTransformation | None = None,
    server_batch_size: int = 128,
    average: Average = "logits",
    validation: Validation | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Federated averaging inside each group of clients of one architecture, then
    distillation across the groups.

    `delta` and the simulator's `backbone` are tuples with one tree for each
    architecture. One exchange a group: each trains and answers in a program of its own,
    over its own clients. The teachers are all clients' models as they were received,
    each counting once; they stream through, only the sum of their answers is kept. A
    group of which nobody came is distilled too.

    Args:
      architectures: loss, logits and client optimizer of each.
      groups: [N], which of them each client has.
      public: {name: array[n, ...]}, unlabelled examples that the server has.
      backbones: what the server runs the models on, the same trees as the simulator's;
        default: they have none.
      server_steps: N, at most, for each architecture and round; with 0 each group is plain FedAvg.
      server_optimizer: starts afresh each round; default Adam at 1e-3 with a cosine to
        0 over `server_steps`, as in the paper.
      average: of the teachers' logits (the paper's), or of their probabilities.
      validation: labelled examples that end distillation early; default: it runs to the last step.
      epochs, local_steps, batch_size: as for `fedavg`.

    `simulator.model(state)` has one entry for each architecture; a client's is that of its group.

    Sends: of its group's model down w, up w - w_k; public examples stay with the server.
    """
    architectures = distillation.checked_architectures(architectures)
    checks.server_optimizer("server_optimizer", server_optimizer)
    n_groups = len(architectures)
    groups = distillation.checked_groups(groups, n_groups, public, average)
    checks.whole("server_steps", server_steps, least=0)
    checks.whole("server_batch_size", server_batch_size, least=1)
    if validation is not None:
        validation.checked()
    optimizer = server_optimizer or optax.adam(
        optax.cosine_decay_schedule(1e-3, max(server_steps, 1))
    )
    local = {"epochs": epochs, "local_steps": local_steps, "batch_size": batch_size}

    def init(delta, key, setting):
        distillation.check_sizes(delta, groups, n_groups, setting.n_clients)

        def array(tree):
            return jax.tree.map(jnp.asarray, tree)

        frozen = (
            tuple(() for _ in architectures) if backbones is None else tuple(backbones)
        )
        checks = () if validation is None else (validation.examples, validation.labels)
        return FedDFState(
            delta, Held(jnp.asarray(groups), *array((public, frozen, checks)))
        )

    def answers(group: int, model: Tree, held: Held, examples: dict) -> jax.Array:
        logits, backbone = architectures[group].logits, held.backbones[group]
        return distillation.all_logits(
            logits, model, backbone, examples, server_batch_size
        )

    def distilled(
        group: int, student: Tree, held: Held, target: jax.Array, key: jax.Array
    ) -> Tree:
        step = distillation.distiller(
            architectures[group].logits,
            held.backbones[group],
            held.public,
            target,
            distance=distillation.kl,
            optimizer=optimizer,
            batch_size=min(server_batch_size, n_rows(held.public)),
            key=key,
        )
        start = (student, optimizer.init(student))
        if validation is None:
            return jax.lax.fori_loop(0, server_steps, step, start)[0]
        examples, labels = held.validation

        def score(student):
            return jnp.mean(
                answers(group, student, held, examples).argmax(-1) == labels
            )

        return distillation.until_plateau(
            step, start, server_steps, score, validation.every, validation.patience
        )

    def exchange(group: int, architecture: Architecture) -> Exchange:
        (plain,) = fedavg(architecture.task, architecture.optimizer, **local).exchanges

        def client(backbone, message):
            work = plain.client(backbone[group], message.delta)
            return lambda message, state, data, key: work(
                message.delta, state, data, key
            )

        def lift(state: FedDFState, sent, weight):
            model, held = trees.subtract(state.delta[group], sent), state.held
            said = answers(group, model, held, held.public)
            return Gathered(
                updates=jax.tree.map(lambda x: weight * x, sent),
                examples=weight,
                opinions=distillation.opinion(said, average),
                teachers=jnp.float32(1),
            )

        def server(state: FedDFState, aggregate, key):
            state = state._replace(gathered=(*state.gathered, aggregate.value))
            return (state, {}) if group + 1 < n_groups else fused(state, key)

        return Exchange(
            broadcast=lambda state: Message(
                state.delta[group], Unbilled(state.held.groups)
            ),
            client=client,
            server=server,
            reduce=Reduce(lift=lift, finish=lambda total, setting: total),
            batches=plain.batches,
            selects=lambda message, client, key: message.groups[client] == group,
        )

    def fused(state: FedDFState, key: jax.Array) -> tuple[FedDFState, dict]:
        averaged = tuple(map(_averaged, state.delta, state.gathered))
        teachers = sum(gathered.teachers for gathered in state.gathered)
        said = sum(gathered.opinions for gathered in state.gathered)
        target = distillation.agreed(said / jnp.maximum(teachers, 1), average)
        if not server_steps:
            return FedDFState(averaged, state.held), {}
        keys = jax.random.split(key, n_groups)
        students = tuple(
            distilled(g, averaged[g], state.held, target, keys[g])
            for g in range(n_groups)
        )
        return FedDFState(
            trees.select(jnp.asarray(teachers > 0), students, averaged), state.held
        ), {}

    return Algorithm(
        init=init, exchanges=tuple(map(exchange, range(n_groups), architectures))
    )


def _averaged(delta: Tree, gathered: Gathered) -> Tree:
    """FedAvg's; delta itself if nobody of the group came."""
    examples = jnp.where(gathered.examples > 0, gathered.examples, 1.0)
    return jax.tree.map(lambda w, total: w - total / examples, delta, gathered.updates)
