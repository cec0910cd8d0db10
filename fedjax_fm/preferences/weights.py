"""What the tokens of the longer answer of a pair count."""

import jax
import jax.numpy as jnp

from fedjax_fm.preferences.pairs import Answers


def length_weights(answers: Answers, beyond: float) -> tuple[jax.Array, jax.Array]:
    """Weights of both answers' tokens: 1, and `beyond` past the shorter one's length.

    Args:
      answers: of B pairs, for their masks.
      beyond: of the tokens past the common length, 0 <= beyond <= 1.

    Returns:
      Two f32[B, T-1]; 0 where a token does not count.

    References:
      Liu et al. 2024, arXiv 2409.06411.

    Example:
      >>> one, two = jnp.array([[True, False, False]]), jnp.array([[True, True, True]])
      >>> answers = Answers(
      ...     chosen=one, rejected=two, chosen_counts=one, rejected_counts=two
      ... )
      >>> [weights.tolist() for weights in length_weights(answers, 0.5)]
      [[[1.0, 0.0, 0.0]], [[1.0, 0.5, 0.5]]]
    """
    chosen, rejected = answers.chosen_counts, answers.rejected_counts
    common = jnp.minimum(chosen.sum(-1), rejected.sum(-1))

    def of(counts: jax.Array) -> jax.Array:
        number = jnp.cumsum(counts, axis=-1)  # from 1, of the tokens that count
        weight = jnp.where(number <= common[:, None], 1.0, beyond)
        return jnp.where(counts, weight, 0.0)

    return of(chosen), of(rejected)
