"""RFA: the geometric median, smoothed.

Pillutla, Kakade, Harchaoui, 2019, "Robust Aggregation for Federated Learning", arXiv
1912.13445.

    z <- sum_k p_k x_k;   repeat:  b_k = p_k / max(nu, |z - x_k|),  z <- sum b_k x_k / sum b_k

The points z are means of the uploads, so that squared distances D between uploads tell
theirs: with coefficients c, |z - x_k|^2 = sum_j c_j D_jk - 1/2 sum_ij c_i c_j D_ij.
"""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.robust.distances import affine, distances_of, shares
from fedjax_fm.robust.rule import Reduced, Rule, Uploads, count_of


def geometric_median(*, iterations: int = 4, smoothing: float = 1e-5) -> Rule:
    """The point of the smallest mean distance to the uploads, by Weiszfeld's iterations.

    It stays within bounds while liars have less than half of the weight. An upload
    whose distance to more than half of the others is beyond float32 counts nothing. In
    float32 distances below 1e-3 of the largest one between uploads that count are not
    told from each other.

    Args:
      iterations: from the mean on; each takes away a part of what far uploads count,
        with 0 it is the mean.
      smoothing: nu > 0, in the unit of the uploads, below which distances count as nu;
        where it is larger than all of them the rule is the mean.

    Returns:
      A rule; clients may count by weights.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Pillutla et al. 2019, arXiv 1912.13445, algorithm 2.

    Example:
      >>> from fedjax_fm import robust
      >>> values, ones = jnp.array([[0.0], [1.0], [100.0]]), jnp.ones(3)
      >>> uploads = robust.Uploads(values, ones > 0, ones)
      >>> rule = geometric_median(iterations=50)
      >>> rule.reduce(uploads, (), None).value.round(2).tolist()
      [1.0]
    """
    checks.whole("iterations", iterations, least=0)
    checks.real("smoothing", smoothing, above=0)

    def coefficients(squares: jax.Array, uploads: Uploads):
        near = _within_reach(squares, uploads.accepted)
        weights = jnp.where(near, uploads.weights, 0.0)
        pairs = near[:, None] & near[None, :]
        distances = jnp.where(pairs, squares, 0.0)

        def step(i, chosen):
            to_all = jnp.matmul(distances, chosen, precision="highest")
            spread = jnp.dot(chosen, to_all, precision="highest")
            squared = jnp.maximum(to_all - spread / 2, 0.0)
            return shares(weights / jnp.maximum(smoothing, jnp.sqrt(squared)))

        return jax.lax.fori_loop(0, iterations, step, shares(weights))

    def reduce(uploads, state, reference):
        chosen = coefficients(distances_of(uploads), uploads)
        return Reduced(affine(chosen, uploads.values))

    return Rule(reduce, coefficients=coefficients, takes_weights=True)


def _within_reach(distances: jax.Array, accepted: jax.Array) -> jax.Array:
    """bool[C]: accepted, and no more than half of the distances are infinite."""
    is_far = jnp.isinf(distances) & accepted[None, :]
    return accepted & (2 * jnp.sum(is_far, axis=1) <= count_of(accepted))
