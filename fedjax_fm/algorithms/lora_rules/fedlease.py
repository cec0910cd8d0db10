"""FedLEASE: an expert for each cluster of clients; clients use all, and train their own.

Wang, Bian, Zhang, Xu, 2025, "Adaptive LoRA Experts Allocation and Selection for
Federated Fine-Tuning", arXiv 2509.15087; github.com/lei-wang-link/FedLEASE.

    warm-up:   every client trains a LoRA alone and sends it once (`fedlease_warm_up`);
               `cluster_adapters`, and `expert_start` of the clusters' means
    rounds:    client of cluster j:  expert j and router j <- local steps, beside the
                                     other experts, frozen
               server:  the mean over cluster j of both
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.compressed import counts_once
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, local_training
from fedjax_fm.algorithms.lora_rules.adapter_clusters import (
    check_labels,
    checked_labels,
)
from fedjax_fm.algorithms.lora_rules.cohort import (
    moved_by_mean,
    weights_of_arrived,
)
from fedjax_fm.algorithms.lora_rules.experts import (
    join_experts,
    n_experts,
    own_first,
    own_of,
    split_experts,
    with_own,
)
from fedjax_fm.algorithms.reduce import kept, mean_of
from fedjax_fm.types import (
    Algorithm,
    ClientOutput,
    Exchange,
    Stack,
    Task,
    Tree,
    Unbilled,
)


class FedLEASEState(NamedTuple):
    """Server state.

    Attributes:
      delta: all experts by number; its routers are those of cluster 0.
      routers: by layer, of all clusters, f32[M, ..., in, 2 M - 1].
    """

    delta: Tree
    routers: dict[str, jax.Array]


class _FedLEASE(NamedTuple):
    """The hyper-parameters of `fedlease`, checked."""

    local: LocalTraining
    labels: np.ndarray
    weighted: bool

    def cluster(self, client: jax.Array) -> jax.Array:
        """i32[], of a client."""
        return jnp.asarray(self.labels)[client]


def fedlease(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    labels: np.ndarray,
    weighted: bool = False,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Trains one LoRA expert and one router a cluster, beside the experts of the others.

    Start with `simulator.init(expert_start(...))` of a model with
    `peft.lora_experts`. The factors are averaged one by one, as in `fedit`; with one
    cluster it is `fedit`, counting each client as one.

    Sends, a layer: down all M experts and the client's router, M r (d_in + d_out) +
    (2 M - 1) d_in numbers, up its own expert and router, r (d_in + d_out) + (2 M - 1)
    d_in; the other trained leaves travel both ways and are averaged over all. The
    warm-up has a bill of its own, that of a round of `fedlease_warm_up`.

    A port by others renormalises nothing and orders the router's outputs in another
    way; here as in the authors' code. The server keeps the changes of the whole cohort.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      labels: i32[N], the cluster of every client: of `cluster_adapters`.
      weighted: whether clients count by their examples; the authors count each as one.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedLEASEState`. The client state is i32[], its
      cluster, -1 before its first round; `model` gives a client's own view, the experts
      with its own first and its router, and to clients that took no part yet, as to the
      server, that of cluster 0.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no experts, or others than the labels name.

    References:
      Wang et al. 2025, arXiv 2509.15087.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     expert = delta["expert_a"][0] @ delta["expert_b"][0]  # the client's own
      ...     return jnp.sum((batch["x"] @ expert - batch["y"]) ** 2, axis=-1), {}
      >>> how = {"labels": [0, 1], "local_steps": 9, "batch_size": 1}
      >>> method = fedlease(Task(loss), optax.sgd(0.1), **how)
      >>> x = jnp.ones((1, 1))
      >>> clients = [{"x": x, "y": x}, {"x": x, "y": -x}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> ones = jnp.ones((2, 1, 1))
      >>> delta = {"expert_a": ones, "expert_b": 0 * ones, "router": jnp.zeros((1, 3))}
      >>> state, metrics = simulator.run(simulator.init(delta), 9)
      >>> (state.delta["expert_a"] @ state.delta["expert_b"]).round(2).ravel().tolist()
      [1.0, -1.0]
    """
    checks.flag("weighted", weighted)
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    method = _FedLEASE(local=local, labels=checked_labels(labels), weighted=weighted)

    def init(delta, key, setting):
        experts = split_experts(delta)
        m = n_experts(experts)
        check_labels(method.labels, m, setting.n_clients)
        routers = {layer: jnp.stack([x] * m) for layer, x in experts.routers.items()}
        return FedLEASEState(delta, routers)

    def model(server, own, backbone):
        cluster = jnp.int32(0) if own is None else jnp.maximum(own, 0)
        routers = _of_cluster(server.routers, cluster)
        experts = dataclasses.replace(split_experts(server.delta), routers=routers)
        return join_experts(own_first(experts, cluster)), backbone

    return Algorithm(
        init=init,
        exchanges=(_exchange(method),),
        client_init=lambda delta, key: jnp.int32(-1),
        model=model,
    )


def _of_cluster(
    routers: dict[str, jax.Array], cluster: jax.Array
) -> dict[str, jax.Array]:
    """{layer: f32[..., in, 2 M - 1]}, one cluster's."""
    return {layer: x[cluster] for layer, x in routers.items()}


def _exchange(method: _FedLEASE) -> Exchange:
    """The only one of a round."""

    def broadcast(state):
        experts = split_experts(state.delta)
        return dataclasses.replace(experts, routers=state.routers)

    def address(message, state, client):
        cluster = method.cluster(client)
        routers = _of_cluster(message.routers, cluster)
        return dataclasses.replace(message, routers=routers), Unbilled(cluster)

    def client(backbone, message):
        def one(mine, state, data, key):
            view = own_first(*mine)

            def loss(own, backbone, batch, key):
                delta = join_experts(with_own(view, own))
                return method.local.task.loss(delta, backbone, batch, key)

            task, start = Task(loss, method.local.task.weight), own_of(view)
            local = method.local._replace(task=task)
            end, metrics = local.run(start, backbone, data, key)
            weight = local.weight(data) if method.weighted else counts_once(data)
            _, cluster = mine
            return ClientOutput(
                upload=trees.subtract(end, start),
                weight=weight,
                state=cluster,
                metrics=metrics,
            )

        return one

    def server(state, aggregate, key):
        return _averaged(method, state, aggregate.value), {}

    return Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=kept(),
        batches=method.local.batches,
        address=address,
    )


def _averaged(method: _FedLEASE, state: FedLEASEState, found: Stack) -> FedLEASEState:
    """The state after the server's step; a cluster without uploads stays."""
    changes, _ = found.values
    weights = weights_of_arrived(found)
    experts = split_experts(state.delta)
    members = jax.nn.one_hot(method.cluster(found.ids), n_experts(experts))
    by_cluster = weights[:, None] * members  # [C, M]
    shares = mean_of(by_cluster, jnp.sum(by_cluster, axis=0))

    def moved(old: jax.Array, change: jax.Array) -> jax.Array:
        return old + jnp.einsum("cm,c...->m...", shares, change)

    pairs = jax.tree.map(moved, experts.pairs, changes.pairs)
    routers = jax.tree.map(moved, state.routers, changes.routers)
    rest = moved_by_mean(weights, experts.rest, changes.rest)
    first = _of_cluster(routers, jnp.int32(0))
    experts = dataclasses.replace(experts, pairs=pairs, routers=first, rest=rest)
    return FedLEASEState(join_experts(experts), routers)
