"""The mean, which one liar moves anywhere: what the other rules are compared with."""

from fedjax_fm.robust.distances import affine, shares
from fedjax_fm.robust.rule import Reduced, Rule


def mean() -> Rule:
    """The mean of the uploads, by their weights if the wrapper is told to.

    Returns:
      A rule that tolerates no liar; uploads that are not finite are rejected before it.

    References:
      McMahan et al. 2017, arXiv 1602.05629, algorithm 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import robust
      >>> values, ones = jnp.array([[1.0], [2.0], [6.0]]), jnp.ones(3)
      >>> uploads = robust.Uploads(values, ones > 0, ones)
      >>> mean().reduce(uploads, (), None).value.tolist()
      [3.0]
    """

    def coefficients(gram, uploads):
        return shares(uploads.weights)

    def reduce(uploads, state, reference):
        return Reduced(affine(shares(uploads.weights), uploads.values))

    return Rule(reduce, coefficients=coefficients, takes_weights=True)
