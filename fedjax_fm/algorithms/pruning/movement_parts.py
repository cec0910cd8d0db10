"""Movement pruning's round: weights and scores are trained side by side.

    W' = W M(S),   dL/dW = dL/dW' M,   dL/dS = dL/dW' W  (summed over a block)

Everybody trains both; the server averages both. M is the caller's.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.averaging import Averaging, AveragingState
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, optimizer_of
from fedjax_fm.algorithms.pruning.movement_masks import (
    Blocks,
    MasksOf,
    Movement,
    checked_blocks,
)
from fedjax_fm.algorithms.pruning.movement_training import (
    Trained,
    side_by_side,
    with_penalty,
)
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.sparsity import Layers, densities, masked
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Algorithm, ClientData, ClientOutput, Exchange, Task, Tree


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


def movement(
    average: Averaging,
    masks: MasksOf,
    *,
    score_optimizer: ClientOptimizer | None,
    blocks: Blocks | None,
    pruned: str | None,
    stacked: str | None,
    penalty: float = 0.0,
) -> Algorithm:
    """Checks what both kinds of movement pruning take; the algorithm of their masks.

    Args:
      average: local training, weights and the server's step.
      masks: `(scores, round, layers) -> ` masks of the blocks.
      score_optimizer: of S; None: the paper's.
      blocks: as for `movement_pruning`.
      pruned: as for `movement_pruning`.
      stacked: as for `movement_pruning`.
      penalty: lambda, on the mean of sigmoid(S).

    Raises:
      TypeError, ValueError: one of them is of another kind.
    """
    blocks = {} if blocks is None else checked_blocks(blocks)
    if pruned is None and blocks:
        pruned = "|".join(blocks)
    if score_optimizer is None:
        score_optimizer = optax.adam(1e-2)
    method = Movement(
        average=average,
        score_optimizer=checks.client_optimizer("score_optimizer", score_optimizer),
        layers=Layers(pruned, stacked).checked(),
        blocks=blocks,
        masks=masks,
        penalty=penalty,
    )
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
        penalised = partial(with_penalty, method.penalty)
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
