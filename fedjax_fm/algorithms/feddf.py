"""FedDF: Ensemble Distillation for Robust Model Fusion in Federated Learning.

Lin, Kong, Stich, Jaggi, 2020, arXiv 2006.07242, algorithms 1 (one architecture) and 3
(several). Clients of group g hold models f_g; the cohort may be of any groups:

    client k of group g:
        w_k <- local training from w_g                               `_client`
    server:
        w_g <- sum_k p_k w_k, k in g, p_k by examples                `_averaged`
        zbar(x) = 1/K sum_k f(w_k, x), all K clients of the cohort   `_ensemble`
        steps on unlabelled x, for each g:                           `_distilled`
            w_g <- w_g - eta grad KL(softmax(zbar(x)) || softmax(f_g(w_g, x)))
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms import distillation
from fedjax_fm.algorithms.distillation import Architecture, Average, n_rows
from fedjax_fm.algorithms.local import LocalTraining, local_training, sends_update
from fedjax_fm.algorithms.parts import in_group
from fedjax_fm.algorithms.reduce import mean_of, total
from fedjax_fm.types import Algorithm, Exchange, Tree, Unbilled


class Validation(NamedTuple):
    """Ends distillation early: when accuracy has not risen for `patience` steps.

    The best student of all looks stays; the average that it starts from is not one of
    them. The first look is `every` steps in: `patience` ends nothing that has
    `server_steps` <= `patience`, and only the choice of the best is left.

    Attributes:
      examples: {name: [m, ...]}, what the models read.
      labels: i32[m].
      every: steps between two looks, at most `patience`.
      patience: steps; the default is the paper's.
    """

    examples: dict[str, Any]
    labels: Any
    every: int = 100
    patience: int = 1000

    def checked(self) -> "Validation":
        """Self, or an error naming the value that makes no sense."""
        checks.whole("every", self.every, least=1)
        checks.whole("patience", self.patience, least=1)
        if self.every > self.patience:
            raise ValueError(
                f"expected every <= patience, got every={self.every}, "
                f"patience={self.patience}"
            )
        return self


class ServerData(NamedTuple):
    """What the server has besides models; never changed."""

    groups: jax.Array  # i32[N]
    public: dict[str, jax.Array]  # {name: [n, ...]}
    backbones: tuple[Tree, ...]
    validation: Any  # (examples, labels) or ()


class Gathered(NamedTuple):
    """Sums over the clients of one group."""

    updates: Tree  # of n_k (w_g - w_k)
    examples: jax.Array  # f32[], of n_k
    opinions: jax.Array  # f32[n, K], of f(w_k, x): logits or probabilities
    teachers: jax.Array  # f32[], of 1


class FedDFState(NamedTuple):
    """Server state; between rounds `gathered` is empty."""

    delta: tuple[Tree, ...]  # w_g, one for each architecture
    held: ServerData
    gathered: tuple[Gathered, ...] = ()  # of the groups so far


class Message(NamedTuple):
    """What clients of one group are sent; only the model is billed."""

    delta: Tree  # w_g
    groups: Any  # i32[N]


class _FedDF(NamedTuple):
    """The hyper-parameters of `feddf`, checked."""

    architectures: tuple[Architecture, ...]
    groups: np.ndarray
    public: dict[str, Any]
    backbones: Sequence[Tree] | None
    server_steps: int  # N
    server_optimizer: optax.GradientTransformation
    server_batch_size: int
    average: Average
    validation: Validation | None


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
    """Federated averaging inside groups of one architecture, distillation across them.

    `delta` and the simulator's `backbone` are tuples with one tree for each
    architecture. One exchange a group: its clients train, and the server predicts with
    their models. The teachers are all clients' models as they were
    received, each counting once; only the sum of their predictions is kept. A group
    without a client in the cohort is distilled too.

    Sends: down the model w_g of the client's group, up w_g - w_k; public examples stay
    with the server.

    Args:
      architectures: loss, logits and client optimizer of each.
      groups: [N], which of them each client has.
      public: {name: array[n, ...]}, unlabelled examples that the server has.
      backbones: what the server runs the models on, the same trees as the simulator's;
        default: they have none.
      server_steps: at most, for each architecture and round; with 0 each group is plain
        FedAvg. The authors take 10,000, with `Validation`.
      server_optimizer: starts afresh each round; default Adam at 1e-3 with a cosine to
        0 over `server_steps`; the authors' spans their 10,000 steps.
      server_batch_size: public examples a step of the server.
      average: of the teachers' logits (the paper's), or of their probabilities.
      validation: labelled examples that end distillation early; default: it runs to the
        last step.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step of a client.

    Returns:
      An algorithm whose server state is `FedDFState`; clients keep nothing.
      `simulator.model(state)` has one entry for each architecture; a client's is that
      of its group.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.
      ValueError: later, deltas or clients are not as many as architectures or groups.

    References:
      Lin et al. 2020, arXiv 2006.07242, algorithms 1 and 3.

    Example:
      >>> import fedjax_fm as ffm
      >>> def logits(w, backbone, batch):
      ...     return batch["x"] @ w
      >>> def loss(w, backbone, batch, key):
      ...     return optax.softmax_cross_entropy(logits(w, (), batch), batch["y"]), {}
      >>> linear = Architecture(ffm.Task(loss), logits, optax.sgd(0.5))
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> how = {"server_steps": 2, "local_steps": 1, "batch_size": 2}
      >>> method = feddf([linear, linear], [0, 1], {"x": x}, **how)
      >>> population = ffm.Population.from_clients([{"x": x, "y": x}] * 2)
      >>> simulator = ffm.Simulator(
      ...     method, population, backbone=((), ()), cohort_size=2
      ... )
      >>> start = (jnp.zeros((2, 2)), jnp.eye(2))
      >>> state, metrics = simulator.run(simulator.init(start), 2)
      >>> [logits(w, (), {"x": x}).argmax(-1).tolist() for w in state.delta]
      [[0, 1], [0, 1]]
    """
    architectures = distillation.checked_architectures(architectures)
    checks.server_optimizer("server_optimizer", server_optimizer)
    n_groups = len(architectures)
    groups = distillation.checked_groups(groups, n_groups, public, average)
    checks.whole("server_steps", server_steps, least=0)
    checks.whole("server_batch_size", server_batch_size, least=1)
    if validation is not None:
        validation.checked()
    cosine = optax.cosine_decay_schedule(1e-3, max(server_steps, 1))
    method = _FedDF(
        architectures=architectures,
        groups=groups,
        public=public,
        backbones=backbones,
        server_steps=server_steps,
        server_optimizer=server_optimizer or optax.adam(cosine),
        server_batch_size=server_batch_size,
        average=average,
        validation=validation,
    )

    def training(architecture: Architecture) -> LocalTraining:
        return local_training(
            architecture.task,
            architecture.optimizer,
            epochs=epochs,
            local_steps=local_steps,
            batch_size=batch_size,
        )

    exchanges = tuple(
        _exchange(method, group, training(architecture))
        for group, architecture in enumerate(architectures)
    )
    return Algorithm(init=partial(_init, method), exchanges=exchanges)


def _init(method: _FedDF, delta, key, setting) -> FedDFState:
    """The starts, and what the server has from the beginning."""
    n_groups = len(method.architectures)
    distillation.check_sizes(delta, method.groups, n_groups, setting.n_clients)

    def arrays(tree: Tree) -> Tree:
        return jax.tree.map(jnp.asarray, tree)

    backbones, labelled = ((),) * n_groups, ()
    if method.backbones is not None:
        backbones = tuple(method.backbones)
    if method.validation is not None:
        labelled = (method.validation.examples, method.validation.labels)
    held = ServerData(
        groups=jnp.asarray(method.groups),
        public=arrays(method.public),
        backbones=arrays(backbones),
        validation=arrays(labelled),
    )
    return FedDFState(delta=delta, held=held)


def _exchange(method: _FedDF, group: int, local: LocalTraining) -> Exchange:
    """Clients of one group train; the last group's exchange ends the round."""

    def broadcast(state: FedDFState) -> Message:
        return Message(state.delta[group], Unbilled(state.held.groups))

    return Exchange(
        broadcast=broadcast,
        client=partial(_client, group, local),
        server=partial(_server, method, group),
        reduce=total(partial(_contribution, method, group)),
        batches=local.batches,
        selects=in_group(group, lambda message: message.groups),
    )


def _client(group: int, local: LocalTraining, backbone, message: Message):
    """FedAvg's client: trains w_g, sends w_g - w_k."""
    work = sends_update(local)(backbone[group], message.delta)

    def one(message: Message, state, data, key):
        return work(message.delta, state, data, key)

    return one


def _contribution(method: _FedDF, group: int, state: FedDFState, sent, weight):
    """A client's update, and f(w_k, x) of all public examples."""
    model = trees.subtract(state.delta[group], sent)
    logits = _logits(method, group, model, state.held, examples=state.held.public)
    return Gathered(
        updates=jax.tree.map(lambda x: weight * x, sent),
        examples=weight,
        opinions=distillation.predictions(logits, method.average),
        teachers=jnp.float32(1),
    )


def _server(method: _FedDF, group: int, state: FedDFState, aggregate, key):
    """Keeps the sums of this group; after those of the last one, fuses the models."""
    n_groups = len(method.architectures)
    gathered = (*state.gathered, aggregate.value)
    if group + 1 < n_groups:
        return state._replace(gathered=gathered), {}
    averaged = tuple(map(_averaged, state.delta, gathered))
    if not method.server_steps:
        return FedDFState(averaged, state.held), {}
    target, n_teachers = _ensemble(method, gathered)
    keys = jax.random.split(key, n_groups)
    students = tuple(
        _distilled(method, g, averaged[g], state.held, target=target, key=keys[g])
        for g in range(n_groups)
    )
    delta = trees.select(jnp.asarray(n_teachers > 0), students, averaged)
    return FedDFState(delta, state.held), {}


def _averaged(delta: Tree, gathered: Gathered) -> Tree:
    """FedAvg's w_g - sum_k p_k (w_g - w_k); w_g itself without such a client."""
    update = mean_of(gathered.updates, gathered.examples)
    return trees.subtract(delta, update)


def _ensemble(method: _FedDF, gathered: tuple[Gathered, ...]):
    """(logits of zbar f32[n, K], the number of teachers f32[])."""
    zero = jnp.float32(0)
    n_teachers = sum((of_group.teachers for of_group in gathered), zero)
    predictions = sum((of_group.opinions for of_group in gathered), zero)
    mean = mean_of(predictions, n_teachers)
    return distillation.consensus(mean, method.average), n_teachers


def _distilled(
    method: _FedDF,
    group: int,
    student: Tree,
    held: ServerData,
    *,
    target: jax.Array,
    key: jax.Array,
) -> Tree:
    """Steps of w_g towards the ensemble's predictions, or fewer with validation."""
    step = distillation.distiller(
        method.architectures[group].logits,
        held.backbones[group],
        held.public,
        target,
        distance=distillation.kl,
        optimizer=method.server_optimizer,
        batch_size=min(method.server_batch_size, n_rows(held.public)),
        key=key,
    )
    start = (student, method.server_optimizer.init(student))
    validation = method.validation
    if validation is None:
        return jax.lax.fori_loop(0, method.server_steps, step, start)[0]
    examples, labels = held.validation

    def accuracy(student):
        logits = _logits(method, group, student, held, examples=examples)
        return jnp.mean(logits.argmax(-1) == labels)

    return distillation.until_plateau(
        step,
        start,
        most=method.server_steps,
        score=accuracy,
        every=validation.every,
        patience=validation.patience,
    )


def _logits(
    method: _FedDF, group: int, model: Tree, held: ServerData, *, examples: dict
) -> jax.Array:
    """f32[n, K]: f_g(model, x) of these examples, at the server."""
    return distillation.all_logits(
        method.architectures[group].logits,
        model,
        held.backbones[group],
        examples=examples,
        batch_size=method.server_batch_size,
    )
