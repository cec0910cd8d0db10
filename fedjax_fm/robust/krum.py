"""Krum and Multi-Krum: the uploads that have close neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer, 2017, "Machine Learning with Adversaries:
Byzantine Tolerant Gradient Descent", arXiv 1703.02757.

    score s_i = sum of the m - f - 2 smallest |x_i - x_j|^2, j not i
    Krum:       the x_i of the smallest score, the first of equal ones
    Multi-Krum: the mean of the q best
"""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.robust.distances import affine, gram_of, shares, squared_distances
from fedjax_fm.robust.rule import Reduced, Rule, Uploads, count_of


def krum(liars: int) -> Rule:
    """Takes one upload, that with the closest neighbours.

    Made for m >= 2 f + 3 uploads; with fewer, the number of neighbours is at least 1.

    Args:
      liars: f, how many clients of a cohort may lie.

    Returns:
      A rule; clients count the same.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Blanchard et al. 2017, arXiv 1703.02757, section 4.

    Example:
      >>> from fedjax_fm import robust
      >>> values = jnp.array([[0.0], [1.0], [1.5], [2.5], [99.0]])
      >>> uploads = robust.Uploads(values, jnp.ones(5, bool), jnp.ones(5))
      >>> krum(1).reduce(uploads, (), None).value.tolist()
      [1.0]
    """
    return multi_krum(liars, kept=1)


def multi_krum(liars: int, *, kept: int | None = None) -> Rule:
    """Takes the mean of the uploads with the closest neighbours.

    Args:
      liars: f, how many clients of a cohort may lie.
      kept: q, how many uploads are averaged, at most those that came; None: m - f.

    Returns:
      A rule; clients count the same. With q = m it is the mean.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Blanchard et al. 2017, arXiv 1703.02757, section 5.

    Example:
      >>> from fedjax_fm import robust
      >>> values = jnp.array([[0.0], [1.0], [2.0], [3.0], [99.0]])
      >>> uploads = robust.Uploads(values, jnp.ones(5, bool), jnp.ones(5))
      >>> multi_krum(1).reduce(uploads, (), None).value.tolist()
      [1.5]
    """
    checks.whole("liars", liars, least=0)
    if kept is not None:
        checks.whole("kept", kept, least=1)

    def coefficients(gram: jax.Array, uploads: Uploads):
        accepted = uploads.accepted
        n = count_of(accepted)
        scores = krum_scores(squared_distances(gram), accepted, liars)
        place = jnp.argsort(jnp.argsort(scores, stable=True), stable=True)
        most = jnp.maximum(n - liars, 1) if kept is None else kept
        return shares(jnp.where(accepted & (place < most), 1.0, 0.0))

    def reduce(uploads, state, reference):
        chosen = coefficients(gram_of(uploads), uploads)
        return Reduced(affine(chosen, uploads.values))

    return Rule(reduce, coefficients=coefficients)


def krum_scores(distances: jax.Array, chosen: jax.Array, liars: int) -> jax.Array:
    """The scores of Krum among the chosen; infinite for the others.

    Args:
      distances: f32[C, C], squared.
      chosen: bool[C].
      liars: f.

    Returns:
      f32[C]; of rows beyond float32 the largest finite number.
    """
    n = count_of(chosen)
    itself = jnp.eye(len(chosen), dtype=bool)
    is_neighbour = chosen[None, :] & ~itself
    ordered = jnp.sort(jnp.where(is_neighbour, distances, jnp.inf), axis=1)
    n_near = jnp.clip(n - liars - 2, min(1, len(chosen) - 1), n - 1)
    is_near = jnp.arange(len(chosen)) < n_near
    sums = jnp.sum(jnp.where(is_near, ordered, 0.0), axis=1)
    return jnp.where(chosen, jnp.minimum(sums, jnp.finfo(sums.dtype).max), jnp.inf)
