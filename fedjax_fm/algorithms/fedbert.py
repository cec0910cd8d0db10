"""FedBERT: When Federated Learning Meets Pre-training.

Tian, Wan, Lyu, Yao, Jin, Sun, 2022, ACM Transactions on Intelligent Systems and
Technology 13(4). Split learning: client k holds c_k, embedding and head; the server
holds s, the body. In step i, with the losses l_k of the clients' batches and p_k, a
client's share of the step's examples:

    client  a_k = embed(c_k, batch)                    `_embed`           a_k up
    server  z_k = body(s, a_k)                         `_body_forward`    z_k down
    client  dl_k/dz_k, and dl_k/dc_k through the head  `_head_gradients`  dl_k/dz_k up
    server  s <- optimizer(s, sum_k p_k dl_k/ds)       `_body_step`       dl_k/da_k down
    client  c_k <- optimizer(c_k, dl_k/dc_k)           `_client_step`

and in a round, over all clients of the cohort side by side:

    c_k <- c                                           `_start`           c down
    `local_steps` steps                                `_onward`, from step to step
    c <- c - sum_k (n_k / n) (c - c_k)                 `_end`, `_average` c - c_k up
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import client_weight
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.reduce import mean_of, stack, weighted_mean
from fedjax_fm.split import Split
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientOutput,
    Exchange,
    Repeat,
    Stack,
    Task,
    Tree,
    Unbilled,
)

ABSENT = jnp.iinfo(jnp.int32).max


class FedBERTState(NamedTuple):
    """Server state.

    What passes the cuts is indexed by client, and means nothing between rounds.

    Attributes:
      delta: {"client": c, "server": s}.
      optimizer: the state of the body's.
      places: i32[N], where a client is in the cohort's order, ABSENT if it is not.
      sent: activations and context, leaves [N, B, ...].
      features: leaves [N, B, ...].
      gradients: of the losses with respect to the activations, leaves [N, B, ...].
    """

    delta: dict[str, Tree]
    optimizer: Any
    places: jax.Array
    sent: tuple[Tree, Tree]
    features: Tree
    gradients: Tree


class ClientPart(NamedTuple):
    """Client state.

    Attributes:
      part: c_k.
      optimizer: the state of its own, which goes on from round to round.
      head: the gradient of c_k through the head, until the one through the embedding is
        there.
      key: of this round, as key data: step i draws from `fold_in(key, i)`, as in
        `local.train`.
    """

    part: Tree
    optimizer: Any
    head: Tree
    key: jax.Array


class LastMessage(NamedTuple):
    """What a client is sent at the end of a round."""

    gradients: Tree  # of its last step, leaves [B, ...]; of all clients [N, B, ...]
    start: Any  # c, which it was sent when the round began; not billed


class _FedBERT(NamedTuple):
    """The hyper-parameters of `fedbert`, checked."""

    split: Split
    client_optimizer: optax.GradientTransformation
    server_optimizer: optax.GradientTransformation
    local_steps: int
    batches: Batches

    def head_task(self) -> Task:
        """The loss of (c_k, z_k): what is behind the second cut."""

        def loss(both, backbone, batch, key):
            part, features = both
            return self.split.head(part, features, batch, key)

        return Task(loss, self.split.weight)

    def body(self, server: Tree, activations: Tree, context: Tree) -> Tree:
        """The body on the rows of all clients, leaves [C, B, ...]."""
        return jax.vmap(self.split.body, (None, 0, 0))(server, activations, context)


def fedbert(
    split: Split,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation,
    *,
    local_steps: int,
    batch_size: int,
) -> Algorithm:
    """Split learning of `delta = {"client": ..., "server": ...}`, clients in parallel.

    For sequential training take one client a round, `samplers.cyclic(n_clients, 1)`:
    clients take turns, and each starts from the body and the client part that the one
    before it left, with optimizer moments of its own.

    Sends: each step the activations and their gradients, the features and theirs, 4 B L
    h values for hidden states [B, L, h], and the context; each round the client part
    both ways. Labels and what is masked stay with the client. An uplink channel meets
    all uploads; downlink channels are refused, since clients are sent different things.

    The body's and the embedding's forward passes are done twice, as a vjp cannot be kept
    between exchanges. `split.body` draws no random numbers: no dropout there. The server
    holds arrays of B rows per client of the population: meant for silos. Client parts are
    averaged by examples; the authors' code counts each client once.

    Args:
      split: the model and its two cuts.
      client_optimizer: of client parts; each client keeps its state, so that one client
        is centralised training.
      server_optimizer: of the body, one update a step; `optax.set_to_zero()` freezes
        it.
      local_steps: steps a round, the same for all; a straggler that ends earlier
        counts in no later step, fully in the average, and is billed for all.
      batch_size: B, rows a client and step.

    Returns:
      An algorithm whose server state is `FedBERTState`; client states are `ClientPart`.

    Raises:
      TypeError: `split` is no Split, or an optimizer is not optax's.
      ValueError: `local_steps` or `batch_size` is below 1.

    References:
      Tian et al. 2022, ACM Transactions on Intelligent Systems and Technology 13(4);
      the U-shaped split: Vepakomma et al. 2018, arXiv 1812.00564.

    Example:
      >>> import fedjax_fm as ffm
      >>> split = Split(  # x * c, then * s, then the distance from y
      ...     embed=lambda c, batch, key: (c * batch["x"], ()),
      ...     body=lambda s, activations, context: s * activations,
      ...     head=lambda c, features, batch, key: ((features - batch["y"]) ** 2, {}),
      ...     sent=(jax.ShapeDtypeStruct((), jnp.float32), ()),
      ... )
      >>> sgd = optax.sgd(0.05)
      >>> method = fedbert(split, sgd, sgd, local_steps=2, batch_size=2)
      >>> clients = [{"x": jnp.array([1.0, 2.0]), "y": jnp.array([2.0, 4.0])}] * 2
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> delta = {"client": jnp.float32(1), "server": jnp.float32(1)}
      >>> state, metrics = simulator.run(simulator.init(delta), 10)
      >>> round(float(state.delta["client"] * state.delta["server"]), 3)
      2.0
    """
    checks.instance("split", split, Split, "write Split(embed, body, head, sent)")
    for name, optimizer in (
        ("client_optimizer", client_optimizer),
        ("server_optimizer", server_optimizer),
    ):
        checks.instance(
            name,
            optimizer,
            optax.GradientTransformation,
            "write for example optax.adam(1e-3)",
        )
    method = _FedBERT(
        split=split,
        client_optimizer=client_optimizer,
        server_optimizer=server_optimizer,
        local_steps=local_steps,
        batches=Batches(batch_size, steps=local_steps).checked(),
    )
    between = (_features_down(method, last=False), _gradients_down(method))
    loop = Repeat(local_steps - 1, between)
    return Algorithm(
        init=partial(_init, method),
        exchanges=(
            _first(method),
            *((loop,) if local_steps > 1 else ()),
            _features_down(method, last=True),
            _last(method),
        ),
        client_init=partial(_client_init, method),
    )


# The exchanges of a round, in their order


def _first(method: _FedBERT) -> Exchange:
    """Down c, up the activations of step 0."""
    return Exchange(
        broadcast=lambda state: state.delta["client"],
        client=_each(partial(_start, method)),
        server=partial(_body_forward, method),
        reduce=stack(_all_of_them),
        batches=method.batches,
    )


def _features_down(method: _FedBERT, last: bool) -> Exchange:
    """Down the features of a step, up the gradients with respect to them."""

    def client(features, mine, data, key):
        i = jnp.int32(method.local_steps - 1) if last else data.repeat
        return _head_gradients(method, features, mine, data=data, i=i)

    return Exchange(
        broadcast=lambda state: state.features,
        client=_each(client),
        server=partial(_body_step, method),
        reduce=stack(_all_of_them),
        batches=method.batches,
        address=_of_client,
    )


def _gradients_down(method: _FedBERT) -> Exchange:
    """Down the gradients of a step's activations, up the next step's activations."""
    return Exchange(
        broadcast=lambda state: state.gradients,
        client=_each(partial(_onward, method)),
        server=partial(_body_forward, method),
        reduce=stack(_all_of_them),
        batches=method.batches,
        address=_of_client,
    )


def _last(method: _FedBERT) -> Exchange:
    """Down the gradients of the last step's activations, up c - c_k."""

    def broadcast(state):
        return LastMessage(
            gradients=state.gradients, start=Unbilled(state.delta["client"])
        )

    def address(message, state, client):
        gradients = _of_client(message.gradients, state, client)
        return LastMessage(gradients=gradients, start=Unbilled(message.start))

    return Exchange(
        broadcast=broadcast,
        client=_each(partial(_end, method)),
        server=_average,
        reduce=weighted_mean(),
        batches=method.batches,
        address=address,
    )


def _each(one: Callable[..., ClientOutput]) -> Callable:
    """`Exchange.client` of what computes nothing once for all clients."""
    return lambda backbone, message: one


def _of_client(message: Tree, state, client: jax.Array) -> Tree:
    """`Exchange.address`: the client's own rows, [N, B, ...] -> [B, ...]."""
    return jax.tree.map(lambda x: x[client], message)


def _all_of_them(uploads: Stack, setting) -> Stack:
    """`Reduce.finish` of uploads that are kept as they came."""
    return uploads


# Where both sides start


def _init(method: _FedBERT, delta, key, setting) -> FedBERTState:
    """An empty cohort, and zeros at the cuts."""
    rows = (setting.n_clients, method.batches.batch_size)

    def zeros(shapes):
        return jax.tree.map(lambda s: jnp.zeros((*rows, *s.shape), s.dtype), shapes)

    sent = zeros(method.split.sent)
    features = jax.eval_shape(method.body, delta["server"], *sent)
    return FedBERTState(
        delta=delta,
        optimizer=method.server_optimizer.init(delta["server"]),
        places=jnp.full(setting.n_clients, ABSENT),
        sent=sent,
        features=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), features),
        gradients=zeros(method.split.sent[0]),
    )


def _client_init(method: _FedBERT, delta, key) -> ClientPart:
    part = delta["client"]
    return ClientPart(
        part=part,
        optimizer=method.client_optimizer.init(part),
        head=jax.tree.map(jnp.zeros_like, part),
        key=jnp.zeros_like(jax.random.key_data(key)),
    )


# The client


def _read(mine: ClientPart, data, i):
    """(batch, mask, key) of step i."""
    batch, mask = data.batch(i)
    round_key = jax.random.wrap_key_data(mine.key)
    return batch, mask, jax.random.fold_in(round_key, i)


def _embed(method: _FedBERT, mine: ClientPart, data, i) -> ClientOutput:
    """a_k = embed(c_k, batch of step i), up with its context."""
    batch, _, key = _read(mine, data, i)
    return ClientOutput(
        upload=method.split.embed(mine.part, batch, key),
        weight=jnp.float32(1),
        state=mine,
    )


def _start(method: _FedBERT, part, mine: ClientPart, data, key) -> ClientOutput:
    """c_k <- c, then the first step's activations."""
    mine = mine._replace(part=part, key=jax.random.key_data(key))
    return _embed(method, mine, data, jnp.int32(0))


def _head_gradients(
    method: _FedBERT, features, mine: ClientPart, data, i
) -> ClientOutput:
    """dl_k/dz_k goes up, dl_k/dc_k through the head waits for `_client_step`."""
    batch, mask, key = _read(mine, data, i)

    def loss(*both):
        return masked_loss(
            method.head_task(), both, (), batch=batch, mask=mask, key=key
        )

    gradients = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (through_head, to_features), metrics = gradients(mine.part, features)
    goes_on = i < data.n_steps
    metrics = jax.tree.map(lambda x: jnp.where(goes_on, x, 0.0), metrics)
    _, weight = metrics["loss"]
    return ClientOutput(
        upload=to_features,
        weight=weight,
        state=mine._replace(head=through_head),
        metrics=metrics,
    )


def _client_step(method: _FedBERT, gradients, mine: ClientPart, data, i) -> ClientPart:
    """c_k <- optimizer(c_k, dl_k/dc_k), of head and embedding together.

    `gradients` is dl_k/da_k. A client without a step i stays as it is.
    """
    batch, _, key = _read(mine, data, i)

    def activations(part):
        return method.split.embed(part, batch, key)[0]

    _, pull = jax.vjp(activations, mine.part)
    (through_embedding,) = pull(gradients)
    gradient = trees.add(through_embedding, mine.head)
    updates, moments = method.client_optimizer.update(
        gradient, mine.optimizer, mine.part
    )
    after = (optax.apply_updates(mine.part, updates), moments)
    before = (mine.part, mine.optimizer)
    part, moments = trees.select(i < data.n_steps, after, before)
    return mine._replace(part=part, optimizer=moments)


def _onward(method: _FedBERT, gradients, mine: ClientPart, data, key) -> ClientOutput:
    """The end of one step and the activations of the next."""
    i = data.repeat
    mine = _client_step(method, gradients, mine, data=data, i=i)
    return _embed(method, mine, data, i + 1)


def _end(
    method: _FedBERT, message: LastMessage, mine: ClientPart, data, key
) -> ClientOutput:
    """The end of the last step; sends c - c_k."""
    i = jnp.int32(method.local_steps - 1)
    mine = _client_step(method, message.gradients, mine, data=data, i=i)
    return ClientOutput(
        upload=trees.subtract(message.start, mine.part),
        weight=client_weight(method.head_task(), data),
        state=mine,
    )


# The server


def _body_forward(method: _FedBERT, state: FedBERTState, aggregate, key):
    """z_k = body(s, a_k) of all clients."""
    (sent, _), active, ids = aggregate.value
    ids = jnp.where(active, ids, ABSENT)
    order = jnp.arange(ids.size, dtype=jnp.int32)
    absent = jnp.full_like(state.places, ABSENT)
    places = absent.at[ids].set(order, mode="drop")
    sent = _by_client(sent, places)
    features = method.body(state.delta["server"], *_in_order(sent, places, active))
    after = state._replace(
        places=places, sent=sent, features=_by_client(features, places)
    )
    return after, {}


def _body_step(method: _FedBERT, state: FedBERTState, aggregate, key):
    """The body's step: s <- optimizer(s, sum_k p_k dl_k/ds); keeps dl_k/da_k.

    p_k is the client's share of the step's weights. Of weight 0 are empty places and
    clients that were lost on the way or make fewer steps.
    """
    to_features, weights = aggregate.value.values
    total = jnp.sum(weights)
    shares = mean_of(weights, total)
    activations, context = _in_order(state.sent, state.places, weights > 0)
    server = state.delta["server"]

    def body(server, activations):
        return method.body(server, activations, context)

    _, pull = jax.vjp(body, server, activations)
    gradient, to_activations = pull(_times(to_features, shares))
    # These are gradients of p_k l_k; a client steps along that of l_k.
    own = 1 / jnp.where(shares > 0, shares, 1.0)
    to_activations = _times(to_activations, own)
    updates, moments = method.server_optimizer.update(gradient, state.optimizer, server)
    after = (optax.apply_updates(server, updates), moments)
    server, moments = trees.select(total > 0, after, (server, state.optimizer))
    state = state._replace(
        delta={**state.delta, "server": server},
        optimizer=moments,
        gradients=_by_client(to_activations, state.places),
    )
    return state, {}


def _average(state: FedBERTState, aggregate, key):
    """Federated averaging: c <- c - sum_k (n_k / n) (c - c_k)."""
    part = trees.subtract(state.delta["client"], aggregate.value)
    return state._replace(delta={**state.delta, "client": part}), {}


def _times(tree: Tree, factors: jax.Array) -> Tree:
    """Leaves [C, ...], the rows of each client times its factor, f32[C]."""

    def one(x):
        return x * factors.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)

    return jax.tree.map(one, tree)


def _by_client(stacked: Tree, places: jax.Array) -> Tree:
    """Leaves [C, ...] in the cohort's order -> [N, ...]; zeros for those absent."""
    return jax.tree.map(
        lambda x: jnp.take(x, places, axis=0, mode="fill", fill_value=0), stacked
    )


def _in_order(by_client: Tree, places: jax.Array, active: jax.Array) -> Tree:
    """Leaves [N, ...] -> [C, ...] in the cohort's order.

    Empty places repeat a client, so that nothing there is NaN.
    """
    clients = jnp.arange(places.size, dtype=jnp.int32)
    ids = jnp.zeros(active.shape, jnp.int32)
    ids = ids.at[places].set(clients, mode="drop")
    ids = jnp.where(active, ids, ids[jnp.argmax(active)])
    return jax.tree.map(lambda x: x[ids], by_client)
