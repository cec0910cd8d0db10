"""Estimators of a client's gradient from clipped gradients of single examples.

With c_j(x) the gradient of example j clipped to the norm G, and m examples drawn:

    sgd   g = mean_j c_j(x)
    svrg  g = mean_j (c_j(x) - c_j(y)) + mean of all c_i(y),  y <- x with probability p
    saga  g = mean_j (c_j(x) - t_j) + mean of all t_i,  then t_j <- c_j(x)

Li, Zhao, Li, Chi, SoteriaFL, 2022, arXiv 2206.09888, section 4.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.local_gradient import zeros_of
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.reduce import mean_of
from fedjax_fm.privacy.clipping import clip
from fedjax_fm.types import ClientData, Task, Tree


class Snapshot(NamedTuple):
    """SVRG's: a point, and the mean of all clipped gradients there."""

    point: Tree  # y
    gradient: Tree
    is_made: jax.Array  # bool[], False before the first round


class Estimator(NamedTuple):
    """How a client estimates its gradient; checked by the method.

    Attributes:
      task: the loss, without weights.
      name: "sgd", "svrg" or "saga".
      clip_norm: G.
      snapshot_rate: p of svrg.
      table_rows: of saga.
      index: of saga, the column that numbers a client's examples.
      microbatch: of sgd, examples whose gradients exist at one time; None: all.
    """

    task: Task
    name: str
    clip_norm: float
    snapshot_rate: float
    table_rows: int | None
    index: str | None
    microbatch: int | None = None


class Draw(NamedTuple):
    """What a client drew this round.

    Attributes:
      backbone: what is frozen.
      batch: {name: [B, ...]}.
      mask: bool[B], False in padded rows.
      data: the client's.
      key: of the loss and of the coin.
    """

    backbone: Tree
    batch: Tree
    mask: jax.Array
    data: ClientData
    key: jax.Array


def memory_of(method: Estimator, delta: Tree) -> Any:
    """What an estimator remembers before the first round.

    Args:
      method: the estimator.
      delta: the point.

    Returns:
      () for sgd, a `Snapshot` for svrg, a table of zeros for saga.
    """
    zeros = zeros_of(delta)
    if method.name == "svrg":
        return Snapshot(delta, zeros, jnp.bool_(False))
    if method.name == "sgd":
        return ()

    def table(x):
        return jnp.zeros((method.table_rows, *x.shape), x.dtype)

    return jax.tree.map(table, zeros)


def estimated(
    method: Estimator, delta: Tree, memory: Any, draw: Draw
) -> tuple[Tree, Any]:
    """The estimate at a point, and what is remembered next.

    Args:
      method: the estimator.
      delta: the point, x.
      memory: from `memory_of`, or from the round before.
      draw: what the client drew.

    Returns:
      (gradient, memory).
    """
    if method.name == "sgd":
        return _mean_of_parts(method, delta, draw), memory
    here = _clipped(method, delta, draw)
    if method.name == "saga":
        return _saga(method, memory, here, draw)
    return _svrg(method, delta, memory, here, draw)


def _mean_of_parts(method: Estimator, delta: Tree, draw: Draw) -> Tree:
    """The mean of the clipped gradients, of one microbatch after the other.

    Each example is clipped by itself: clipping means of microbatches would be another
    mechanism.
    """
    keys = jax.random.split(draw.key, draw.mask.shape[0])
    size = method.microbatch
    if size is None or size == len(keys):
        return _mean(_clipped(method, delta, draw, keys), draw)

    def parts(x: jax.Array) -> jax.Array:
        return x.reshape(-1, size, *x.shape[1:])

    def add(total: Tree, part: Any) -> tuple[Tree, None]:
        batch, mask, own = part
        some = draw._replace(batch=batch, mask=mask)
        rows = _clipped(method, delta, some, own)
        return jax.tree.map(lambda t, x: t + jnp.sum(x, axis=0), total, rows), None

    each = jax.tree.map(parts, (draw.batch, draw.mask, keys))
    total, _ = jax.lax.scan(add, zeros_of(delta), each)
    return mean_of(total, jnp.sum(draw.mask, dtype=jnp.float32))


def _clipped(
    method: Estimator, delta: Tree, draw: Draw, keys: jax.Array | None = None
) -> Tree:
    """The gradient of each example, clipped, [B, ...]; zeros for padded rows."""

    def loss(delta, example, key):
        alone = jax.tree.map(lambda x: x[None], example)
        losses, _ = method.task.loss(delta, draw.backbone, alone, key)
        return losses[0]

    def one(example, is_real, key):
        found = jax.grad(loss)(delta, example, key)
        wide = jax.tree.map(lambda g: g.astype(jnp.float32), found)
        bounded, _ = clip(wide, method.clip_norm)
        return jax.tree.map(lambda g: jnp.where(is_real, g, 0.0), bounded)

    if keys is None:
        keys = jax.random.split(draw.key, draw.mask.shape[0])
    return jax.vmap(one)(draw.batch, draw.mask, keys)


def _mean(rows: Tree, draw: Draw) -> Tree:
    """The mean over the examples of the batch."""
    count = jnp.sum(draw.mask, dtype=jnp.float32)
    return mean_of(jax.tree.map(lambda x: jnp.sum(x, axis=0), rows), count)


def _svrg(method: Estimator, delta, memory: Snapshot, here: Tree, draw: Draw):
    """Differences to a snapshot, which is x itself at first."""
    now = Snapshot(delta, _full(method, delta, draw), jnp.bool_(True))
    used = trees.select(memory.is_made, memory, now)
    there = _clipped(method, used.point, draw)
    change = _mean(trees.subtract(here, there), draw)
    coin = jax.random.bernoulli(stream(draw.key, Stream.SNAPSHOT), method.snapshot_rate)
    return trees.add(change, used.gradient), trees.select(coin, now, used)


def _full(method: Estimator, delta: Tree, draw: Draw) -> Tree:
    """The mean of the clipped gradients of all examples; the first epoch has them all."""

    def add(i, total):
        batch, mask = draw.data.batch(i)
        rows = _clipped(method, delta, draw._replace(batch=batch, mask=mask))
        return jax.tree.map(lambda t, x: t + jnp.sum(x, axis=0), total, rows)

    n_examples = draw.data.n_examples
    n_batches = -(-n_examples // draw.mask.shape[0])
    total = jax.lax.fori_loop(0, n_batches, add, zeros_of(delta))
    return mean_of(total, n_examples.astype(jnp.float32))


def _saga(method: Estimator, table: Tree, here: Tree, draw: Draw):
    """Differences to the table, whose rows of the batch are then replaced."""
    assert method.index is not None
    numbers = jnp.asarray(draw.batch[method.index])
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise TypeError(
            f"expected integers in the column {method.index!r}, which numbers the "
            f"examples of a client, got {numbers.dtype}"
        )

    def known(x):
        # A number beyond the table is a NaN that stops the run.
        rows = x.at[numbers].get(mode="fill", fill_value=jnp.nan)
        shape = (-1, *[1] * (x.ndim - 1))
        return jnp.where(draw.mask.reshape(shape), rows, 0.0)

    change = _mean(trees.subtract(here, jax.tree.map(known, table)), draw)
    count = draw.data.n_examples.astype(jnp.float32)
    mean = mean_of(jax.tree.map(lambda x: jnp.sum(x, axis=0), table), count)
    # Padded rows repeat an example whose own row must win.
    beyond = jnp.iinfo(jnp.int32).max
    places = jnp.where(draw.mask, numbers, beyond)
    after = jax.tree.map(lambda x, g: x.at[places].set(g, mode="drop"), table, here)
    return trees.add(change, mean), after
