"""IFCA: An Efficient Framework for Clustered Federated Learning.

Ghosh, Chung, Yin, Ramchandran, 2020, arXiv 2006.04088. The server has K models.

    client:  j <- argmin_j f_k(w_j)
             w_k <- local steps from w_j;  sends w_j - w_k, and j
    server:  w_j <- w_j - server_optimizer(mean over the clients that chose j), each j
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, local_training
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.personal.clusters import (
    ClusterInit,
    Upload,
    bits_of,
    check_init,
    losses_of_models,
    means_of,
    of_cluster,
    starts_of,
    sums_by_cluster,
    where,
)
from fedjax_fm.types import Algorithm, ClientOutput, Exchange, Task, Tree

NONE_YET = -1  # the cluster of a client that has not taken part


class IFCAState(NamedTuple):
    """Server state.

    Attributes:
      models: leaves [K, ...].
      optimizer: the server optimizers' states, leaves [K, ...].
      chosen: f32[K], what the clients of each cluster counted in the last round.
    """

    models: Tree
    optimizer: Any
    chosen: jax.Array


class _IFCA(NamedTuple):
    """What `ifca` was given, checked."""

    local: LocalTraining
    optimizer: optax.GradientTransformation
    clusters: int
    cluster_init: ClusterInit | None


def ifca(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    clusters: int,
    cluster_init: ClusterInit | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Clients choose the best of K models and train it with those that chose the same.

    Sends: K models down, one change and ceil(log2 K) bits up. A client reads its
    examples once with every model to choose, which `examples_processed` does not count.

    A cluster that nobody chose in a round keeps its model and its optimizer's state.
    The metrics say which: `cluster_0` and so on are the clusters' shares of the
    cohort's weight, `unchosen_clusters` how many have none, `changed_cluster` the share
    of clients that chose another than last time.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      server_optimizer: of each cluster by itself, as for `fedavg`; None means
        `optax.sgd(1.0)`.
      clusters: K.
      cluster_init: `(delta, key, j) -> the start of cluster j`, for example with other
        random weights. None lets all start at the delta: clients of the first round
        then choose at random, which breaks the tie. Otherwise the lowest loss decides
        from the first round on, and of equal losses the lowest j.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `IFCAState`. A client's state is i32[], the
      cluster that it chose last, -1 before its first round; `model` gives that
      cluster's. The server's own delta, also that of clients without a choice, is the
      cluster that counted most in the last round.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        a cluster's start has another form than the delta.

    References:
      Ghosh et al. 2020, arXiv 2006.04088, algorithm 1 with model averaging.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> def apart(delta, key, j):
      ...     return delta + 2.0 * j
      >>> how = {"clusters": 2, "local_steps": 8, "batch_size": 1}
      >>> method = ifca(task, optax.sgd(0.5), cluster_init=apart, **how)
      >>> clients = [{"x": jnp.array([x])} for x in (0.0, 5.0, 6.0)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=3)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 2)
      >>> [round(float(simulator.model(state, client=k)[0]), 1) for k in range(3)]
      [0.0, 5.5, 5.5]
      >>> metrics["downlink_bytes"].tolist(), metrics["uplink_bytes"].tolist()
      ([24, 24], [15, 15])
    """
    checks.whole("clusters", clusters, least=1)
    checks.server_optimizer("server_optimizer", server_optimizer)
    check_init(cluster_init)
    walk: dict[str, Any] = {"epochs": epochs, "local_steps": local_steps}
    local = local_training(task, client_optimizer, batch_size=batch_size, **walk)
    method = _IFCA(
        local=local,
        optimizer=optax.sgd(1.0) if server_optimizer is None else server_optimizer,
        clusters=clusters,
        cluster_init=cluster_init,
    )
    exchange = Exchange(
        broadcast=lambda state: state.models,
        client=partial(_client, method),
        server=partial(_server, method),
        reduce=sums_by_cluster(clusters),
        batches=local.batches,
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(exchange,),
        client_init=lambda delta, key: jnp.int32(NONE_YET),
        delta=largest,
        model=_model,
    )


def _init(method: _IFCA, delta: Tree, key: jax.Array, setting) -> IFCAState:
    """K models, from where they start."""
    models = starts_of(delta, key, method.clusters, method.cluster_init)
    return IFCAState(
        models=models,
        optimizer=jax.vmap(method.optimizer.init)(models),
        chosen=jnp.zeros(method.clusters),
    )


def largest(state: IFCAState) -> Tree:
    """The model of the cluster that counted most in the last round.

    Args:
      state: of the server.
    """
    return of_cluster(state.models, jnp.argmax(state.chosen))


def _model(server: IFCAState, own: Any, backbone: Tree) -> tuple[Tree, Tree]:
    """`Algorithm.model`: of the client's cluster, else of the largest."""
    j = jnp.argmax(server.chosen)
    if own is not None:
        j = jnp.where(own == NONE_YET, j, own)
    return of_cluster(server.models, j), backbone


def _client(method: _IFCA, backbone: Tree, message: Tree) -> Callable:
    """`Exchange.client`: chooses a model and trains it."""

    def one(models, own, data, key):
        losses = losses_of_models(method.local, models, backbone, data)
        j = jnp.argmin(losses).astype(jnp.int32)
        if method.cluster_init is None:
            choice_key = stream(key, Stream.BESIDE_STEPS)
            drawn = jax.random.randint(choice_key, (), 0, method.clusters, jnp.int32)
            j = jnp.where(data.round == 0, drawn, j)
        start = of_cluster(models, j)
        trained, metrics = method.local.run(start, backbone, data, key)
        chosen = jnp.where(data.n_steps > 0, j, own)  # nothing without examples
        had_one = jnp.float32(own != NONE_YET)
        changed = had_one * (chosen != own)
        return ClientOutput(
            upload=Upload(trees.subtract(start, trained), bits_of(j, method.clusters)),
            weight=method.local.weight(data),
            state=chosen,
            metrics={**metrics, "changed_cluster": (changed, had_one)},
        )

    return one


def _server(method: _IFCA, state: IFCAState, aggregate, key):
    """The server's optimizer in each cluster that somebody chose."""
    changes, weights = aggregate.value
    was_chosen = weights > 0
    means = means_of(changes, weights)
    update = jax.vmap(method.optimizer.update)
    updates, moments = update(means, state.optimizer, state.models)
    models = optax.apply_updates(state.models, updates)

    everything = jnp.sum(weights)
    shares = weights / jnp.where(everything > 0, everything, 1.0)
    metrics = {f"cluster_{j}": share for j, share in enumerate(shares)}
    metrics["unchosen_clusters"] = jnp.sum(~was_chosen).astype(jnp.float32)
    return IFCAState(
        models=where(was_chosen, models, state.models),
        optimizer=where(was_chosen, moments, state.optimizer),
        chosen=jnp.where(everything > 0, weights, state.chosen),
    ), metrics
