"""Gossip averaging: clients that average with their neighbours, without a server.

Lian, Zhang, Zhang, Hsieh, Zhang and Liu, Can Decentralized Algorithms Outperform
Centralized Algorithms?, 2017, arXiv 1705.09056 (D-PSGD), here with local steps.

    client k:  x <- sum_j W_kj x_j over itself and its neighbours     `_mixed`
               x_k <- local steps from x;  sends its change to its neighbours

W is symmetric with rows that add up to one, so that averaging keeps the mean of all
models; their distance from it shrinks by W's second eigenvalue.

What the server state holds is the simulator's: what neighbours know of each other.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.algorithms.graphs import checked_mixing
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, local_training
from fedjax_fm.algorithms.reduce import kept
from fedjax_fm.types import (
    Algorithm,
    ClientOutput,
    Exchange,
    Setting,
    Stack,
    Task,
    Tree,
    Unbilled,
)

Mixing = np.ndarray | Callable[[int], np.ndarray]


class GossipState(NamedTuple):
    """What all clients know together.

    Attributes:
      delta: the mean of all models.
      models: leaves [N, ...], of each client what its neighbours have decoded.
      neighbours: i32[N, D], whom a client averages with; itself where it has fewer.
      weights: f32[N, D], W_kj of them, 0 where there are fewer.
      own: f32[N], W_kk.
    """

    delta: Tree
    models: Tree
    neighbours: jax.Array
    weights: jax.Array
    own: jax.Array


class Message(NamedTuple):
    """What one client has of itself and its neighbours by now."""

    mine: Any  # its own model
    theirs: Any  # leaves [D, ...]
    weights: Any  # f32[D]
    own: Any  # f32[]


def gossip(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    mixing: Mixing,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Every client averages with its neighbours in a graph, then trains.

    Everyone should take part in every round (`cohort_size` N): who does not keeps an old
    model that its neighbours go on to average with, and the mean of all drifts.

    Sends: every client its change, once; `uplink_bytes` has it once, as on the air. Where
    each neighbour is sent it by itself, the bytes are those of `edge_bytes`, and each
    receives what its neighbours send. There is no server and no downlink.

    Metrics: `links`, ways between neighbours that a change travelled in the round, and
    `consensus`, the root of the mean square distance of the models from their mean.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      mixing: W f64[N, N], symmetric or at least doubly stochastic, of a connected graph,
        for example `graphs.metropolis(graphs.ring(N), N)`; or a function of N that makes
        it.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `GossipState`. A client's state is its own model,
      which `model` gives; without a client it gives the mean.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.
      ValueError: when a simulation begins: W has another size, does not keep means, or
        is of a graph that is not connected, whose parts are named.

    References:
      Lian et al. 2017, arXiv 1705.09056, algorithm 1.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> from fedjax_fm.algorithms import graphs
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> method = gossip(
      ...     task,
      ...     optax.sgd(0.5),
      ...     mixing=graphs.metropolis(graphs.ring(4), 4),
      ...     local_steps=1,
      ...     batch_size=1,
      ... )
      >>> clients = [{"x": jnp.array([float(k)])} for k in range(4)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=4)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> state.delta.tolist(), simulator.model(state, 3)[0].tolist()
      (0.75, 1.5)
      >>> metrics["links"].tolist(), edge_bytes(metrics).tolist()
      ([8.0], [32.0])
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    if not callable(mixing) and not isinstance(mixing, (np.ndarray, jax.Array)):
        raise TypeError(
            "expected mixing as an array [N, N] or a function of N that makes it, for "
            f"example graphs.metropolis(graphs.ring(N), N), got mixing={mixing!r:.80}"
        )
    exchange = Exchange(
        broadcast=lambda state: Unbilled(state),
        client=lambda backbone, message: partial(_client, local, backbone),
        server=_server,
        reduce=kept(),
        batches=local.batches,
        address=_address,
    )
    return Algorithm(
        init=partial(_init, mixing),
        exchanges=(exchange,),
        client_init=lambda delta, key: delta,
        model=_model,
    )


def edge_bytes(metrics: Mapping[str, np.ndarray]) -> np.ndarray:
    """Bytes of each round over all edges, where every neighbour is sent its own copy.

        uplink_bytes / clients links

    Args:
      metrics: of a run of `gossip`, whose messages are all of one length.

    Returns:
      f64[rounds]; divided by `links` it is what one way between two neighbours carries.
    """
    clients = np.maximum(np.asarray(metrics["clients"], np.float64), 1)
    return np.asarray(metrics["uplink_bytes"]) / clients * np.asarray(metrics["links"])


def _init(mixing: Mixing, delta: Tree, key: jax.Array, setting: Setting) -> GossipState:
    """The same model everywhere, and the table of neighbours."""
    n = setting.n_clients
    made = mixing(n) if callable(mixing) else mixing
    weights = checked_mixing(np.asarray(made), n)
    own = np.diagonal(weights)
    others = weights - np.diag(own)
    width = max(1, int((others > 0).sum(axis=1).max()))
    # Neighbours first, in the order of their numbers; then oneself with weight 0.
    order = np.argsort(others == 0, axis=1, kind="stable")[:, :width]
    linked = np.take_along_axis(others, order, axis=1)
    neighbours = np.where(linked > 0, order, np.arange(n)[:, None])

    def repeated(x):
        return jnp.broadcast_to(x, (n, *jnp.shape(x)))

    return GossipState(
        delta=delta,
        models=jax.tree.map(repeated, delta),
        neighbours=jnp.asarray(neighbours, jnp.int32),
        weights=jnp.asarray(linked, jnp.float32),
        own=jnp.asarray(own, jnp.float32),
    )


def _address(message: GossipState, state: Any, client: jax.Array) -> Unbilled:
    """A client's own model and those of its neighbours, which it was sent before."""
    theirs = message.neighbours[client]
    return Unbilled(
        Message(
            mine=jax.tree.map(lambda x: x[client], message.models),
            theirs=jax.tree.map(lambda x: x[theirs], message.models),
            weights=message.weights[client],
            own=message.own[client],
        )
    )


def _mixed(message: Message) -> Tree:
    """W_kk x_k + sum_j W_kj x_j."""

    def one(mine, theirs):
        total = message.own * mine + jnp.tensordot(message.weights, theirs, axes=1)
        return total.astype(mine.dtype)

    return jax.tree.map(one, message.mine, message.theirs)


def _client(
    local: LocalTraining, backbone, message: Message, state, data, key
) -> ClientOutput:
    """Averages, trains, and sends how its model has changed."""
    trained, metrics = local.run(_mixed(message), backbone, data, key)
    return ClientOutput(
        upload=trees.subtract(trained, message.mine),
        weight=local.weight(data),
        state=trained,
        metrics=metrics,
    )


def _server(state: GossipState, aggregate, key):
    """What neighbours know from now on; no machine computes this alone."""
    found: Stack = aggregate.value
    changes, _ = found.values
    n = state.own.shape[0]
    places = jnp.where(found.active, found.ids, n)  # those outside are dropped

    def moved(models, change):
        return models.at[places].add(change.astype(models.dtype), mode="drop")

    models = jax.tree.map(moved, state.models, changes)
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), models)
    n_links = jnp.sum(state.weights > 0, axis=1)
    carried = jnp.where(found.active, n_links[jnp.minimum(found.ids, n - 1)], 0)
    metrics = {"links": jnp.sum(carried), "consensus": _distance(models, mean)}
    return state._replace(delta=mean, models=models), metrics


def _distance(models: Tree, mean: Tree) -> jax.Array:
    """The root of the mean square distance from the mean."""

    def squares(x, middle):
        apart = jnp.asarray(x - middle, jnp.float32)
        return jnp.sum(apart**2) / x.shape[0]

    parts = jax.tree.leaves(jax.tree.map(squares, models, mean))
    return jnp.sqrt(sum(parts))


def _model(server: GossipState, own: Any, backbone: Tree) -> tuple[Tree, Tree]:
    """`Algorithm.model`: a client's own, or the mean."""
    return (server.delta if own is None else own), backbone
