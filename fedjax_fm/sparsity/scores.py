"""Scores: how much an entry, or a block of entries, is worth."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.sparsity.layers import Flat, Layers
from fedjax_fm.sparsity.masks import with_one_each


def magnitude(weights: Flat) -> Flat:
    """The magnitude of every entry, |w|.

    Args:
      weights: floats by path.

    References:
      Han et al. 2015, arXiv 1506.02626.
    """
    return {name: jnp.abs(leaf) for name, leaf in weights.items()}


def random(weights: Flat, key: jax.Array) -> Flat:
    """A score from [0, 1) for every entry, whatever its weight: the control.

    Args:
      weights: arrays by path, of which the shapes are read.
      key: leaf i, by its name, draws from `fold_in(key, i)`.
    """
    found = {}
    for i, (name, leaf) in enumerate(sorted(weights.items())):
        own = jax.random.fold_in(key, i)
        found[name] = jax.random.uniform(own, leaf.shape)
    return found


def straight_through(weight: jax.Array, score: jax.Array, mask: jax.Array) -> jax.Array:
    """The masked weight, whose gradient reaches the scores: movement pruning's layer.

        W' = W M(S),   dL/dW = dL/dW' M,   dL/dS = dL/dW' W

    A score rises where the weight moves away from zero: under gradient descent at the
    rate a it is -a sum_t (dL/dW')_t W_t.

    Args:
      weight: W, f32[...].
      score: S, of the weight's shape.
      mask: M(S), bool of that shape.

    Returns:
      W', exactly W or 0.

    References:
      Sanh et al. 2020, arXiv 2005.07683.

    Example:
      >>> weight, mask = jnp.array([2.0, -3.0]), jnp.array([True, False])
      >>> def loss(score):
      ...     return jnp.sum(5 * straight_through(weight, score, mask))
      >>> jax.grad(loss)(jnp.zeros(2)).tolist()
      [10.0, -15.0]
    """
    kept = jnp.where(mask, weight, 0)
    through = score - jax.lax.stop_gradient(score)  # zero, with the gradient of S
    return kept + through * jax.lax.stop_gradient(weight)


def sigmoid_masks(
    scores: Flat,
    threshold: float,
    layers: Layers = Layers(),  # noqa: B008
) -> Flat:
    """Keeps the entries with sigmoid(S) > threshold: soft movement pruning.

    A layer without such an entry keeps the one of its largest score.

    Args:
      scores: S by path.
      threshold: tau, 0 <= tau < 1; 0 keeps all.
      layers: says which axes count layers.

    Raises:
      TypeError, ValueError: the threshold is no such number.

    References:
      Sanh et al. 2020, arXiv 2005.07683 (SMvP).
    """
    checks.real("threshold", threshold, least=0, below=1)
    masks = {name: jax.nn.sigmoid(leaf) > threshold for name, leaf in scores.items()}
    return with_one_each(masks, scores, layers)


def score_penalty(scores: Flat) -> jax.Array:
    """The mean of sigmoid(S) over all scores, f32[]: what soft pruning is charged for.

    Args:
      scores: S by path.

    References:
      Sanh et al. 2020, arXiv 2005.07683.
    """
    parts = [jnp.sum(jax.nn.sigmoid(leaf)) for leaf in scores.values()]
    total = jnp.sum(jnp.stack(parts))
    return total / sum(leaf.size for leaf in scores.values())


# Blocks


def check_block(block: Any) -> tuple[int, int]:
    """`block`, if it is (rows, columns), whole numbers from 0.

    Args:
      block: what should be.

    Raises:
      TypeError, ValueError: it is not.
    """
    if not isinstance(block, tuple) or len(block) != 2:
        raise TypeError(f"expected block=(rows, columns), got block={block!r}")
    for side in block:
        checks.whole("block", side, least=0)
    return block


def block_shape(
    name: str, shape: tuple[int, ...], block: tuple[int, int]
) -> tuple[int, ...]:
    """The shape of the blocks of an array's last two axes.

    Args:
      name: of the array, for the message.
      shape: of the array, at least two axes.
      block: rows and columns of a block; 0 stands for the whole axis.

    Raises:
      TypeError, ValueError: a block of no such numbers, or one that does not divide the
        array.

    Example:
      >>> block_shape("w", (3, 64, 96), (32, 0))
      (3, 2, 1)
    """
    check_block(block)
    if len(shape) < 2:
        raise ValueError(f"{name} of shape {list(shape)} has no rows and columns")
    sides = tuple(b or n for b, n in zip(block, shape[-2:], strict=True))
    counts = [n // b for n, b in zip(shape[-2:], sides, strict=True)]
    if any(n % b for n, b in zip(shape[-2:], sides, strict=True)):
        raise ValueError(
            f"blocks of {sides[0]} x {sides[1]} do not divide {name} of shape "
            f"{list(shape)}; give divisors of {shape[-2]} and {shape[-1]}"
        )
    return (*shape[:-2], *counts)


def expand_blocks(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What holds for a block, for each of its entries; its gradient sums over them.

    Args:
      blocks: [..., rows / r, columns / c], as `block_shape` says.
      shape: [..., rows, columns], of the result.

    Example:
      >>> expand_blocks(jnp.array([[1, 2]]), (2, 4)).tolist()
      [[1, 1, 2, 2], [1, 1, 2, 2]]
    """
    rows, columns = blocks.shape[-2:]
    sides = (rows, shape[-2] // rows, columns, shape[-1] // columns)
    wide = jnp.broadcast_to(blocks[..., :, None, :, None], (*shape[:-2], *sides))
    return wide.reshape(shape)


def block_means(x: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    """The mean of an array over each of its blocks: the score of a block.

    Args:
      x: [..., rows, columns], for example |w|.
      counts: shape of the result, as `block_shape` says.

    References:
      Lagunas et al. 2021, arXiv 2109.04838.
    """
    rows, columns = counts[-2:]
    sides = (rows, x.shape[-2] // rows, columns, x.shape[-1] // columns)
    return jnp.mean(x.reshape(*x.shape[:-2], *sides), axis=(-3, -1))
