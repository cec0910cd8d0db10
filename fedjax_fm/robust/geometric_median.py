"""RFA: the geometric median, smoothed.

Pillutla, Kakade, Harchaoui, 2019, "Robust Aggregation for Federated Learning", arXiv
1912.13445.

    z <- sum_k p_k x_k;   repeat:  b_k = p_k / max(nu, |z - x_k|),  z <- sum b_k x_k / sum b_k

The points z = sum_j c_j x_j are means of the uploads, so that inner products G of the
uploads, around any point, tell |z - x_k|^2 = G_kk - 2 (G c)_k + c^T G c.
"""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.robust.distances import affine, gram_of, shares
from fedjax_fm.robust.rule import Reduced, Rule, Uploads


def geometric_median(*, iterations: int = 4, smoothing: float = 1e-5) -> Rule:
    """The point of the smallest mean distance to the uploads, by Weiszfeld's iterations.

    It stays within bounds while liars have less than half of the weight, if the
    iterations are enough. An upload so far from the median of every coordinate that
    float32 cannot hold the square counts nothing.

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

    def coefficients(gram: jax.Array, uploads: Uploads):
        squares = jnp.diagonal(gram)
        near = uploads.accepted & jnp.isfinite(squares)
        weights = jnp.where(near, uploads.weights, 0.0)
        products = jnp.where(near[:, None] & near[None, :], gram, 0.0)

        def step(i, chosen):
            along = jnp.matmul(products, chosen, precision="highest")
            square = jnp.dot(chosen, along, precision="highest")
            squared = jnp.maximum(squares - 2 * along + square, 0.0)
            distances = jnp.where(near, jnp.sqrt(squared), 1.0)
            return shares(weights / jnp.maximum(smoothing, distances))

        return jax.lax.fori_loop(0, iterations, step, shares(weights))

    def reduce(uploads, state, reference):
        chosen = coefficients(gram_of(uploads), uploads)
        return Reduced(affine(chosen, uploads.values))

    return Rule(reduce, coefficients=coefficients, takes_weights=True)
