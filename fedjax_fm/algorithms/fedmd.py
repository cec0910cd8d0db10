"""FedMD: Heterogenous Federated Learning via Model Distillation.

Li, Wang, 2019, arXiv 1910.03581, algorithm 1; distances and order as in the authors'
code. Client k keeps its model f_k, of an architecture of its own.

    transfer learning: f_k is trained on public examples with labels, before the
        federation, then on its own examples                    `_communicate`, once
    in each round, on public examples x:
        communicate:  client k sends f_k(x)                     `_communicate`
        aggregate:    consensus(x) = 1/m sum_k f_k(x)           `_aggregate`
        distribute:   each client is sent the consensus         `_second_exchange`
        digest:       f_k is moved towards the consensus        `_digest`
        revisit:      f_k is trained on its own examples again  `_digest_and_revisit`
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from fedjax_fm import checks, trees
from fedjax_fm.algorithms import distillation
from fedjax_fm.algorithms.distillation import (
    Architecture,
    Average,
    Distance,
    Logits,
    n_rows,
)
from fedjax_fm.algorithms.local import LocalTraining, local_training
from fedjax_fm.algorithms.parts import Stream, in_group, stream
from fedjax_fm.algorithms.reduce import mean_of, nothing, total
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientOutput,
    Exchange,
    Tree,
    Unbilled,
)


class ClientModel(NamedTuple):
    """Client state: f_k, flat, in as many entries as the largest architecture has.

    Attributes:
      weights: f32[largest].
      started: bool[]; False: the client has not taken part yet, and its model is its
        architecture's start.
    """

    weights: jax.Array
    started: jax.Array


class FedMDState(NamedTuple):
    """Server state.

    The server has no model: `delta` holds the starts and never changes.

    Attributes:
      delta: the start of each architecture.
      groups: i32[N], the architecture of each client.
      public: {name: [n, ...]}.
      rows: i32[B], the public examples of this round.
      consensus: f32[B, K], logits of the mean of the last round.
      n_models: f32[], how many models it is the mean of; 0: it is that of zeros.
    """

    delta: tuple[Tree, ...]
    groups: jax.Array
    public: dict[str, jax.Array]
    rows: jax.Array
    consensus: jax.Array
    n_models: jax.Array


class Shared(NamedTuple):
    """What clients and server both have; not billed."""

    groups: jax.Array  # i32[N]
    examples: dict[str, jax.Array]  # {name: [B, ...]}, the public ones of this round
    start: Tree  # of the group's architecture


class Message(NamedTuple):
    """What clients of one group are sent; only the consensus is billed."""

    known: Any  # Shared
    consensus: Any = ()  # f32[B, K], in the second exchange


class _FedMD(NamedTuple):
    """The hyper-parameters of `fedmd`, checked."""

    logits: tuple[Logits, ...]  # of each architecture
    local: tuple[LocalTraining, ...]  # of each architecture; batches of the revisit
    start_batches: Batches
    groups: np.ndarray
    public: dict[str, Any]
    n_classes: int  # K
    n_public: int  # B
    average: Average
    distance: Distance
    digest_optimizer: optax.GradientTransformation
    digest_epochs: int
    digest_batch_size: int
    start_epochs: int


def model_of(start: Tree, client: ClientModel) -> Tree:
    """The model of a client.

    Args:
      start: of the client's architecture.
      client: its state.

    Returns:
      A tree like `start`; `start` itself before the client first takes part.
    """
    flat, unravel = ravel_pytree(start)
    weights = client.weights[: flat.size].astype(flat.dtype)
    return unravel(jnp.where(client.started, weights, flat))


def fedmd(
    architectures: Sequence[Architecture],
    groups: Sequence[int] | np.ndarray,
    public: dict[str, Any],
    *,
    n_classes: int,
    n_public: int | None = None,
    average: Average = "logits",
    distance: Distance | None = None,
    digest_optimizer: optax.GradientTransformation | None = None,
    digest_epochs: int = 1,
    digest_batch_size: int = 256,
    start_epochs: int = 25,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Clients with private models learn from their mean logits on public examples.

    `delta` and the simulator's `backbone` are tuples with one tree for each
    architecture. A round is two exchanges for each architecture: all clients send their
    logits, then all digest and revisit; each exchange is a program of its own, over its
    own clients.

    Sends: up and down f32[B, K], however large the models; those never leave their
    clients.

    Args:
      architectures: loss, logits and optimizer of the private model of each.
      groups: [N], which of them each client has.
      public: {name: array[n, ...]}; their labels serve the transfer learning, which
        comes before: `fedavg` with one client whose examples are the public ones gives
        each architecture's delta.
      n_classes: K.
      n_public: B, public examples drawn anew each round; default all of them, in order.
        The authors: 5000.
      average: of the clients' logits (the paper's), or of their probabilities.
      distance: of logits f32[B, K] from the consensus, minimised by the digest; default
        `mean_absolute` as in the authors' code, and `kl` for probabilities, whose
        logits are known up to a constant only.
      digest_optimizer: default Adam at 1e-3; starts afresh each round, as does the
        private one.
      digest_epochs: passes over the B examples of a round; the authors: 1.
      digest_batch_size: public examples a step of the digest; the authors: 256.
      start_epochs: passes of each client over its own examples when it first takes
        part; the authors: at most 25.
      epochs: full passes of the revisit over a client's data; give this or
        `local_steps`.
      local_steps: batches of the revisit.
      batch_size: own examples a step.

    Returns:
      An algorithm whose server state is `FedMDState`; client states are `ClientModel`.
      `simulator.model(state, k)` has one entry for each architecture, of which that of
      `groups[k]` is client k's; the server has the starts only.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.
      ValueError: mean probabilities with `mean_absolute`; later, deltas or clients are
        not as many as architectures or groups.

    References:
      Li and Wang 2019, arXiv 1910.03581, algorithm 1.

    Example:
      >>> import fedjax_fm as ffm
      >>> def logits(w, backbone, batch):
      ...     return batch["x"] @ w
      >>> def loss(w, backbone, batch, key):
      ...     return optax.softmax_cross_entropy(logits(w, (), batch), batch["y"]), {}
      >>> linear = Architecture(ffm.Task(loss), logits, optax.sgd(0.5))
      >>> x = jnp.eye(2)
      >>> how = {"start_epochs": 1, "local_steps": 1, "batch_size": 2}
      >>> method = fedmd([linear], [0, 0], {"x": x}, n_classes=2, **how)
      >>> population = ffm.Population.from_clients([{"x": x, "y": x}] * 2)
      >>> simulator = ffm.Simulator(method, population, backbone=((),), cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init((jnp.zeros((2, 2)),)), 2)
      >>> (w,), _ = simulator.model(state, client=1)
      >>> logits(w, (), {"x": x}).argmax(-1).tolist()
      [0, 1]
      >>> int(metrics["uplink_bytes"][0])  # 2 clients, 2 examples, 2 classes, 4 bytes
      32
    """
    architectures = distillation.checked_architectures(architectures)
    checks.server_optimizer("digest_optimizer", digest_optimizer)
    groups = distillation.checked_groups(groups, len(architectures), public, average)
    n = n_rows(public)
    if n_public is not None:
        checks.whole("n_public", n_public, least=1, most=n)
    checks.whole("n_classes", n_classes, least=1)
    checks.whole("digest_epochs", digest_epochs, least=0)
    checks.whole("digest_batch_size", digest_batch_size, least=1)
    checks.whole("start_epochs", start_epochs, least=0)
    local = tuple(
        local_training(
            one.task,
            one.optimizer,
            epochs=epochs,
            local_steps=local_steps,
            batch_size=batch_size,
        )
        for one in architectures
    )
    method = _FedMD(
        logits=tuple(one.logits for one in architectures),
        local=local,
        start_batches=Batches(batch_size, epochs=max(start_epochs, 1)),
        groups=groups,
        public=public,
        n_classes=n_classes,
        n_public=n if n_public is None else n_public,
        average=average,
        distance=_checked_distance(distance, average),
        digest_optimizer=digest_optimizer or optax.adam(1e-3),
        digest_epochs=digest_epochs,
        digest_batch_size=digest_batch_size,
        start_epochs=start_epochs,
    )
    each_group = range(len(architectures))
    first = tuple(_first_exchange(method, group) for group in each_group)
    second = tuple(_second_exchange(method, group) for group in each_group)
    return Algorithm(
        init=partial(_init, method),
        exchanges=(*first, *second),
        client_init=_client_init,
        model=_model,
    )


def _checked_distance(distance: Distance | None, average: Average) -> Distance:
    """The digest's distance, the default if there is none."""
    if average == "logits":
        return distance or distillation.mean_absolute
    if distance is distillation.mean_absolute:
        raise ValueError(
            "logits of mean probabilities are known up to a constant: expected a "
            "distance that ignores it"
        )
    return distance or distillation.kl


def _init(method: _FedMD, delta, key, setting) -> FedMDState:
    """The starts, and the public examples of the first round."""
    distillation.check_sizes(delta, method.groups, len(method.local), setting.n_clients)
    return FedMDState(
        delta=delta,
        groups=jnp.asarray(method.groups),
        public=jax.tree.map(jnp.asarray, method.public),
        rows=_drawn_rows(method, key),
        consensus=jnp.zeros((method.n_public, method.n_classes), jnp.float32),
        n_models=jnp.float32(0),
    )


def _drawn_rows(method: _FedMD, key: jax.Array) -> jax.Array:
    """i32[B]: the public examples of a round."""
    n = n_rows(method.public)
    if method.n_public == n:
        return jnp.arange(n)
    return jax.random.permutation(key, n)[: method.n_public]


def _client_init(delta, key) -> ClientModel:
    """A client that has not taken part."""
    largest = max(map(trees.size, delta))
    weights = jnp.zeros(largest, jnp.float32)
    return ClientModel(weights, started=jnp.bool_(False))


def _updated(client: ClientModel, model: Tree) -> ClientModel:
    """The client's state with this model."""
    flat, _ = ravel_pytree(model)
    weights = client.weights.at[: flat.size].set(flat.astype(jnp.float32))
    return ClientModel(weights, jnp.bool_(True))


def _shared(state: FedMDState, group: int) -> Unbilled:
    """What a client of this group and the server both have."""
    examples = distillation.take(state.public, state.rows)
    return Unbilled(Shared(state.groups, examples, state.delta[group]))


def _takes_part(group: int):
    """`Exchange.selects` of the clients of one group."""
    return in_group(group, lambda message: message.known.groups)


# Communicate and aggregate


def _first_exchange(method: _FedMD, group: int) -> Exchange:
    """Clients of one architecture send their logits of the public examples."""
    return Exchange(
        broadcast=lambda state: Message(_shared(state, group)),
        client=lambda backbone, message: partial(
            _communicate, method, group, backbone[group]
        ),
        server=partial(_aggregate, method, group),
        reduce=total(),
        batches=method.start_batches,
        selects=_takes_part(group),
    )


def _communicate(
    method: _FedMD,
    group: int,
    backbone,
    message: Message,
    client: ClientModel,
    data,
    key,
) -> ClientOutput:
    """Sends f_k(x); a client that takes part for the first time trains before."""
    shared = message.known
    model = model_of(shared.start, client)
    if method.start_epochs:
        steps = jnp.where(client.started, 0, data.n_steps)
        data = data._replace(n_steps=steps)
        model, _ = method.local[group].run(model, backbone, data, key)
    logits = distillation.all_logits(
        method.logits[group],
        model,
        backbone,
        examples=shared.examples,
        batch_size=method.digest_batch_size,
    )
    return ClientOutput(
        upload=distillation.predictions(logits, method.average),
        weight=jnp.float32(1),
        state=_updated(client, model),
    )


def _aggregate(method: _FedMD, group: int, state: FedMDState, aggregate, key):
    """consensus(x) = 1/m sum_k f_k(x); a sum until that of the last group is there."""
    predictions, n_models = aggregate.value
    if group:
        predictions = state.consensus + predictions
        n_models = state.n_models + n_models
    if group + 1 == len(method.local):
        mean = mean_of(predictions, n_models)
        predictions = distillation.consensus(mean, method.average)
    return state._replace(consensus=predictions, n_models=n_models), {}


# Distribute, digest and revisit


def _second_exchange(method: _FedMD, group: int) -> Exchange:
    """Clients of one architecture are sent the consensus; nothing comes back."""
    return Exchange(
        broadcast=lambda state: Message(_shared(state, group), state.consensus),
        client=lambda backbone, message: partial(
            _digest_and_revisit, method, group, backbone[group]
        ),
        server=partial(_end_of_round, method, group),
        reduce=nothing(),
        batches=method.local[group].batches,
        selects=_takes_part(group),
    )


def _digest(
    method: _FedMD, group: int, backbone, message: Message, model: Tree, *, key
) -> Tree:
    """Steps of f_k towards the consensus."""
    step = distillation.distiller(
        method.logits[group],
        backbone,
        message.known.examples,
        message.consensus,
        distance=method.distance,
        optimizer=method.digest_optimizer,
        batch_size=min(method.digest_batch_size, method.n_public),
        key=key,
    )
    start = (model, method.digest_optimizer.init(model))
    per_epoch = -(-method.n_public // method.digest_batch_size)
    n_steps = method.digest_epochs * per_epoch
    model, _ = jax.lax.fori_loop(0, n_steps, step, start)
    return model


def _digest_and_revisit(
    method: _FedMD,
    group: int,
    backbone,
    message: Message,
    client: ClientModel,
    data,
    key,
) -> ClientOutput:
    """Moves f_k towards the consensus, then trains it on the client's own examples."""
    model = model_of(message.known.start, client)
    digest_key = stream(key, Stream.BESIDE_STEPS)
    model = _digest(method, group, backbone, message, model=model, key=digest_key)
    model, metrics = method.local[group].run(model, backbone, data, key)
    return ClientOutput(
        upload=(),
        weight=jnp.float32(1),
        state=_updated(client, model),
        metrics=metrics,
    )


def _end_of_round(method: _FedMD, group: int, state: FedMDState, aggregate, key):
    """After the last group, draws the public examples of the next round."""
    if group + 1 < len(method.local):
        return state, {}
    return state._replace(rows=_drawn_rows(method, key)), {}


def _model(server: FedMDState, client: ClientModel | None, backbone):
    """`Algorithm.model`: the starts, or a client's model in each place."""
    if client is None:
        return server.delta, backbone
    return tuple(model_of(start, client) for start in server.delta), backbone
