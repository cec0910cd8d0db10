"""Movement pruning's local steps: weights and scores, each with an optimizer of its own.

Sanh, Wolf, Rush, 2020, arXiv 2005.07683.
"""

from typing import Any, NamedTuple

import jax
import optax

from fedjax_fm.sparsity import score_penalty
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Tree


class Trained(NamedTuple):
    """What is trained and travels, both ways.

    Attributes:
      weights: W.
      scores: S, one for each block of a pruned leaf, by its dotted path.
    """

    weights: Tree
    scores: Flat


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


def with_penalty(strength: float, gradients: Trained, trained: Trained) -> Trained:
    """The gradients with that of the penalty on the scores.

    Args:
      strength: lambda.
      gradients: of the task's loss.
      trained: where they are taken.
    """
    if strength == 0:
        return gradients
    slopes = jax.grad(score_penalty)(trained.scores)
    scores = jax.tree.map(lambda g, s: g + strength * s, gradients.scores, slopes)
    return gradients._replace(scores=scores)
