"""Movement pruning's round: weights and scores are trained side by side.

    W' = W M(S),   dL/dW = dL/dW' M,   dL/dS = dL/dW' W  (summed over a block)

Everybody trains both; the server averages both. M is the caller's.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.averaging import Averaging, AveragingState
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, optimizer_of
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.sparsity import (
    Layers,
    block_shape,
    check_block,
    densities,
    expand_blocks,
    masked,
    put,
    score_penalty,
    straight_through,
)
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Algorithm, ClientData, ClientOutput, Exchange, Task, Tree

Blocks = Mapping[str, tuple[int, int]]


class Trained(NamedTuple):
    """What is trained and travels, both ways.

    Attributes:
      weights: W.
      scores: S, one for each block of a pruned leaf, by its dotted path.
    """

    weights: Tree
    scores: Flat


class MovementState(NamedTuple):
    """Server state.

    Attributes:
      delta: W, dense: what is pruned now may return.
      scores: S, by the dotted path of a pruned leaf.
      round: i32[], rounds that are done.
      optimizer: the server optimizer's state, of W and S.
    """

    delta: Tree
    scores: Flat
    round: jax.Array
    optimizer: Any


class Movement(NamedTuple):
    """What both kinds of movement pruning share.

    Attributes:
      average: local training, weights and the server's step.
      score_optimizer: of the scores.
      layers: which leaves are pruned.
      blocks: (rows, columns) of a block, by regular expression; others have a score for
        each entry.
      masks: `(scores, round) -> ` masks of the blocks.
      penalty: lambda, on the mean of sigmoid(S).
    """

    average: Averaging
    score_optimizer: ClientOptimizer
    layers: Layers
    blocks: Blocks
    masks: Callable[[Flat, jax.Array], Flat]
    penalty: float

    def first_scores(self, delta: Tree) -> Flat:
        """Zeros, one for each block."""
        weights = self.layers.weights(delta)
        return {name: jnp.zeros(self._shape(name, x)) for name, x in weights.items()}

    def _shape(self, name: str, leaf: jax.Array) -> tuple[int, ...]:
        """The shape of a leaf's scores."""
        for pattern, block in self.blocks.items():
            if re.search(pattern, name):
                return block_shape(name, leaf.shape, block)
        return leaf.shape

    def entry_masks(self, delta: Tree, scores: Flat, round_index: jax.Array) -> Flat:
        """The masks of all entries in a round."""
        stopped = jax.lax.stop_gradient(scores)
        masks = self.masks(stopped, round_index)
        weights = self.layers.weights(delta)
        return {name: _expanded(masks[name], x) for name, x in weights.items()}

    def pruned(self, trained: Trained, round_index: jax.Array) -> Tree:
        """W', through which gradients reach W and S."""
        delta, scores = trained
        masks = self.entry_masks(delta, scores, round_index)

        def one(name, weight):
            score = _expanded(scores[name], weight)
            return straight_through(weight, score, masks[name])

        weights = self.layers.weights(delta)
        return put(delta, {name: one(name, x) for name, x in weights.items()})


def _expanded(blocks: jax.Array, leaf: jax.Array) -> jax.Array:
    """What holds for blocks, or for entries, for each entry."""
    if blocks.shape == leaf.shape:
        return blocks
    return expand_blocks(blocks, leaf.shape)


def checked_blocks(blocks: Any) -> Blocks:
    """`blocks`, if it says (rows, columns) by regular expressions.

    Args:
      blocks: what should.

    Raises:
      TypeError, ValueError: it does not.
    """
    if not isinstance(blocks, Mapping):
        raise TypeError(
            f"expected blocks as {{regular expression: (rows, columns)}}, got "
            f"blocks={checks.shown(blocks)}"
        )
    for pattern, block in blocks.items():
        Layers(pattern).checked()
        check_block(block)
    return dict(blocks)


def movement(method: Movement) -> Algorithm:
    """The algorithm.

    Args:
      method: its hyper-parameters, checked.
    """
    exchange = Exchange(
        broadcast=lambda state: Trained(state.delta, state.scores),
        client=partial(_client, method),
        server=partial(_server, method),
        reduce=weighted_mean(),
        batches=method.average.local.batches,
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(exchange,),
        model=partial(_model, method),
    )


def _init(method: Movement, delta, key, setting) -> MovementState:
    """Scores of zero beside the weights."""
    scores = method.first_scores(delta)
    moments = method.average.optimizer.init(Trained(delta, scores))
    return MovementState(
        delta=delta,
        scores=scores,
        round=jnp.int32(0),
        optimizer=moments,
    )


def _client(method: Movement, backbone: Tree, message: Trained):
    """Trains both; sends the changes of both."""

    def one(start, state, data, key):
        local = _local(method, data)
        penalised = partial(_with_penalty, method.penalty)
        end, metrics = local.run(start, backbone, data, key, correct=penalised)
        return ClientOutput(
            upload=trees.subtract(start, end),
            weight=method.average.weight(data),
            state=state,
            metrics=metrics,
        )

    return one


def _local(method: Movement, data: ClientData) -> LocalTraining:
    """Local training of weights and scores in this round."""
    local = method.average.local
    task = local.task

    def loss(trained, backbone, batch, key):
        delta = method.pruned(trained, data.round)
        return task.loss(delta, backbone, batch, key)

    of_weights = optimizer_of(local.optimizer, data.round)
    of_scores = optimizer_of(method.score_optimizer, data.round)
    optimizer = side_by_side(of_weights, of_scores)
    return local._replace(task=Task(loss, task.weight), optimizer=optimizer)


def side_by_side(
    of_weights: optax.GradientTransformation, of_scores: optax.GradientTransformation
) -> optax.GradientTransformation:
    """An optimizer for each field of `Trained`.

    Args:
      of_weights: that of W.
      of_scores: that of S.
    """

    def init(params: Any) -> Any:
        return of_weights.init(params.weights), of_scores.init(params.scores)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        w, s = (None, None) if params is None else params
        weights, first = of_weights.update(updates.weights, state[0], w)
        scores, second = of_scores.update(updates.scores, state[1], s)
        stepped: Any = scores  # optax knows no more than that it is a tree
        return Trained(weights, stepped), (first, second)

    return optax.GradientTransformation(init, update)


def _with_penalty(strength: float, gradients: Trained, trained: Trained) -> Trained:
    """The gradients with that of the penalty on the scores."""
    if strength == 0:
        return gradients
    slopes = jax.grad(score_penalty)(trained.scores)
    scores = jax.tree.map(lambda g, s: g + strength * s, gradients.scores, slopes)
    return gradients._replace(scores=scores)


def _server(method: Movement, state: MovementState, aggregate, key):
    """The server optimizer's step, of both."""
    masks = method.entry_masks(state.delta, state.scores, state.round)
    before = AveragingState(Trained(state.delta, state.scores), state.optimizer)
    after = method.average.stepped(before, aggregate.value)
    stepped = MovementState(
        delta=after.delta.weights,
        scores=after.delta.scores,
        round=state.round + 1,
        optimizer=after.optimizer,
    )
    return stepped, densities(masks)


def _model(method: Movement, state: MovementState, client, backbone):
    """`Algorithm.model`: W M(S) with the masks of the next round."""
    masks = method.entry_masks(state.delta, state.scores, state.round)
    return masked(state.delta, masks), backbone
