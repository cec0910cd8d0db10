"""Several models at the server, one for each cluster of clients."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import LocalTraining
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.reduce import total
from fedjax_fm.types import ClientData, Reduce, Tree

ClusterInit = Callable[[Tree, jax.Array, int], Tree]


class Upload(NamedTuple):
    """What a client sends.

    Attributes:
      change: w_j - w_k.
      cluster: bool[ceil(log2 K)], the bits of j; () where K is 1.
    """

    change: Tree
    cluster: Any


def check_init(cluster_init: Any) -> None:
    """Refuses what makes no start of a cluster.

    Args:
      cluster_init: `(delta, key, j) -> delta`, or None.

    Raises:
      TypeError: something else.
    """
    if cluster_init is not None and not callable(cluster_init):
        raise TypeError(
            "expected cluster_init to be a function (delta, key, j) -> delta, got "
            f"cluster_init={checks.shown(cluster_init)}"
        )


def starts_of(
    delta: Tree, key: jax.Array, clusters: int, cluster_init: ClusterInit | None
) -> Tree:
    """The starts of all clusters, leaves [K, ...].

    Args:
      delta: the trainable tree.
      key: of the method.
      clusters: K.
      cluster_init: makes the start of a cluster; None: the delta.

    Raises:
      ValueError: a start has another form than the delta.
    """
    starts = []
    for j in range(clusters):
        start = delta
        if cluster_init is not None:
            start = cluster_init(delta, jax.random.fold_in(key, j), j)
        if found := trees.difference(trees.shapes(delta), trees.shapes(start)):
            raise ValueError(
                f"expected cluster_init to give trees like the delta, cluster {j}: "
                f"{found}"
            )
        starts.append(start)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)


def of_cluster(models: Tree, j: Any) -> Tree:
    """The model of one cluster.

    Args:
      models: leaves [K, ...].
      j: its number.
    """
    return jax.tree.map(lambda x: x[j], models)


def along(of_clusters: jax.Array, leaf: jax.Array) -> jax.Array:
    """One number a cluster, to go with a leaf: [K] as [K, 1, ...].

    Args:
      of_clusters: [K].
      leaf: [K, ...].
    """
    return of_clusters.reshape(-1, *[1] * (leaf.ndim - 1))


def losses_of_models(
    local: LocalTraining, models: Tree, backbone: Tree, data: ClientData
) -> jax.Array:
    """The loss of each model over all examples of a client, f32[K].

    Args:
      local: the client's training.
      models: leaves [K, ...].
      backbone: what is frozen.
      data: the client's, as the engine gives it.
    """

    def loss_of(model, i):
        batch, mask = data.batch(i)
        seen = {"batch": batch, "mask": mask, "key": None}
        _, sums = masked_loss(local.task, model, backbone, **seen)
        return sums["loss"][0]

    def add(i, sums):
        return sums + jax.vmap(loss_of, (0, None))(models, i)

    (n_models, *_), *_ = (x.shape for x in jax.tree.leaves(models))
    # The first epoch sees every example once.
    n_batches = -(-data.n_examples // local.batches.batch_size)
    return jax.lax.fori_loop(0, n_batches, add, jnp.zeros(n_models))


def bits_of(j: jax.Array, clusters: int) -> Any:
    """The number of a cluster as bool[ceil(log2 K)]; () for the only one.

    Args:
      j: i32[], the number.
      clusters: K.
    """
    n_bits = math.ceil(math.log2(clusters))
    return (j >> jnp.arange(n_bits)) & 1 == 1 if n_bits else ()


def number_of(bits: Any) -> jax.Array:
    """The inverse of `bits_of`, i32[].

    Args:
      bits: of a cluster.
    """
    if isinstance(bits, tuple):
        return jnp.int32(0)
    powers = 1 << jnp.arange(len(bits))
    return jnp.sum(bits * powers)


def sums_by_cluster(clusters: int) -> Reduce:
    """(sum of n_k (w_j - w_k), sum of n_k) of each cluster, leaves [K, ...].

    Args:
      clusters: K.
    """

    def lift(server, sent, weight):
        mine = jnp.arange(clusters) == number_of(sent.cluster)

        def at_cluster(x):
            return jnp.where(along(mine, x[None]), weight * x, 0)

        return jax.tree.map(at_cluster, sent.change), weight * mine

    return total(lift)


def means_of(sums: Tree, weights: jax.Array) -> Tree:
    """The mean of each cluster; zeros where nobody chose it.

    Args:
      sums: leaves [K, ...].
      weights: f32[K].
    """
    divisor = jnp.where(weights > 0, weights, 1.0)
    return jax.tree.map(lambda x: x / along(divisor, x), sums)


def where(of_clusters: jax.Array, new: Tree, old: Tree) -> Tree:
    """Cluster by cluster one of two trees.

    Args:
      of_clusters: bool[K].
      new: leaves [K, ...], where it holds.
      old: leaves [K, ...], elsewhere.
    """

    def one(x, y):
        return jnp.where(along(of_clusters, x), x, y)

    return jax.tree.map(one, new, old)
