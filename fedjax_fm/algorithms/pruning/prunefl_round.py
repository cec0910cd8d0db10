"""PruneFL's round: what clients add up, and when the mask follows it.

Jiang et al. 2022, arXiv 1909.12326, and the authors' code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.averaging import Averaging
from fedjax_fm.algorithms.local import optimizer_of
from fedjax_fm.algorithms.pruning import parts
from fedjax_fm.algorithms.pruning.parts import Message, PrunedState
from fedjax_fm.algorithms.pruning.prunefl_step import RoundTime, adapted_masks
from fedjax_fm.algorithms.recording import recording
from fedjax_fm.algorithms.reduce import mean_of
from fedjax_fm.channels.payload import sent_if
from fedjax_fm.sparsity import Layers, densities, full_masks, pack_kept, unpack_kept
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import ClientOutput, Tree


class Own(NamedTuple):
    """What a client keeps.

    Attributes:
      version: i32[], of the masks that it holds.
      squares: a_k, f32, a tree like delta.
    """

    version: jax.Array
    squares: Tree


class Upload(NamedTuple):
    """What goes up."""

    kept: Tree  # `Rows` of the kept entries of w - w_k
    squares: Tree  # a_k, in the rounds of a new mask only


class PruneFL(NamedTuple):
    """The hyper-parameters of `prunefl`, checked."""

    average: Averaging
    layers: Layers
    time: RoundTime
    every: int
    dropped: float
    halved_every: float
    masks: Flat | None

    def is_due(self, round_index: jax.Array) -> jax.Array:
        """Whether a round ends with a new mask.

        Args:
          round_index: i32[], from 0.
        """
        return (round_index + 1) % self.every == 0


def first_round(method: PruneFL, delta: Tree, key: Any, setting: Any) -> PrunedState:
    """`Algorithm.init`: the first masks, if none were given those that keep all.

    Args:
      method: the hyper-parameters.
      delta: w.
      key: not read.
      setting: not read.

    Raises:
      ValueError: no leaf is pruned, the masks are of other leaves, or a leaf has no time.
    """
    whole = full_masks(method.layers.weights(delta))
    masks = whole if method.masks is None else method.masks
    if problem := trees.difference(whole, jax.tree.map(jnp.asarray, masks)):
        raise ValueError(f"masks are not those of the leaves to prune: {problem}")
    method.time.seconds(delta, masks)  # says if a leaf has none
    return parts.first_state(method.average, delta, masks)


def first_squares(method: PruneFL, delta: Tree, key: Any) -> Own:
    """`Algorithm.client_init`: nothing is added up yet.

    Args:
      method: the hyper-parameters.
      delta: its shapes are read.
      key: not read.
    """
    version = parts.NO_MASKS if method.masks is not None else 0
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), delta)
    return Own(jnp.int32(version), zeros)


def address(message: Message, own: Own, client: jax.Array) -> Message:
    """`Exchange.address`: the masks for those only who do not hold them.

    Args:
      message: of `parts.broadcast`.
      own: what the client keeps.
      client: i32[], its number.
    """
    return parts.sent_masks(message, own.version, client)


def client(method: PruneFL, backbone: Tree, message: Message):
    """`Exchange.client`: trains what is kept, adds up the squares of all gradients.

    Args:
      method: the hyper-parameters.
      backbone: what is frozen.
      message: of the server.
    """
    masks = message.masks
    start = unpack_kept(message.kept, masks)
    local = parts.within(method.average.local, masks).with_optimizer(recording)

    def one(own, held, data, key):
        moments = optimizer_of(local.optimizer, data.round).init(start)
        (end, moments), metrics = local.walk((start, moments), backbone, data, key)
        _, n_examples = metrics["loss"]
        squares = jax.tree.map(
            lambda a, g: a + n_examples * jnp.square(g), held.squares, moments.sum
        )
        is_due = method.is_due(data.round)
        return ClientOutput(
            upload=Upload(
                kept=pack_kept(trees.subtract(start, end), masks),
                squares=sent_if(is_due, squares),
            ),
            weight=method.average.weight(data),
            state=Own(own.version, _unless(is_due, squares)),
            metrics=metrics,
        )

    return one


def _unless(condition: jax.Array, tree: Tree) -> Tree:
    """The tree, or zeros where a condition holds."""
    return trees.select(condition, jax.tree.map(jnp.zeros_like, tree), tree)


def lift(server: PrunedState, sent: Upload, weight: jax.Array) -> Any:
    """`Reduce.lift`: (weighted update, weight, a_k).

    Args:
      server: its state.
      sent: by the client.
      weight: f32[], the client's.
    """
    update = unpack_kept(sent.kept, server.masks)
    weighted = jax.tree.map(lambda x: weight * x, update)
    squares = jax.tree.map(
        lambda x, rows: rows.values[0], update, sent.squares
    )  # one row, and zeros where it was not sent
    return weighted, jnp.asarray(weight, jnp.float32), squares


def server(method: PruneFL, state: PrunedState, aggregate, key):
    """`Exchange.server`: the step; then, when it is time, the new masks.

    Args:
      method: the hyper-parameters.
      state: of the round.
      aggregate: sums over the cohort.
      key: not read.
    """
    summed, weight, squares = aggregate.value
    after = parts.stepped(method.average, state, mean_of(summed, weight))
    share = method.dropped * 0.5 ** (state.round / method.halved_every)

    def adapted():
        how = {"layers": method.layers, "time": method.time, "dropped": share}
        return adapted_masks(after.delta, state.masks, squares, **how)

    # Without an upload there is nothing to go by.
    is_due = method.is_due(state.round) & (aggregate.n_clients > 0)
    masks = jax.lax.cond(is_due, adapted, lambda: state.masks)
    seconds = method.time.seconds(state.delta, state.masks)
    metrics = {**densities(state.masks), "estimated_seconds": seconds}
    return parts.with_version(state, after._replace(masks=masks)), metrics
