"""Bulyan: uploads with close neighbours, averaged around their medians.

El Mhamdi, Guerraoui, Rouault, 2018, "The Hidden Vulnerability of Distributed Learning
in Byzantium", arXiv 1802.07927.

    select:  t = m - 2 f uploads by Krum, each taken out before the next is looked for
    reduce:  for every coordinate the mean of the t - 2 f of them nearest the median
"""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.robust.blocks import over_blocks
from fedjax_fm.robust.distances import gram_of, squared_distances
from fedjax_fm.robust.krum import krum_scores
from fedjax_fm.robust.masked import masked_median, mean_around
from fedjax_fm.robust.rule import Reduced, Rule, count_of


def bulyan(liars: int) -> Rule:
    """Selects by Krum, then averages every coordinate around its median.

    Made for m >= 4 f + 3 uploads. With fewer, at least one upload is selected and one
    value is averaged; Krum looks at one neighbour at least, as the last choices do for
    f below 3: of two uploads that are each other's neighbour the first is taken.

    Args:
      liars: f, how many clients of a cohort may lie; with 0 it is the mean.

    Returns:
      A rule; clients count the same.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      El Mhamdi et al. 2018, arXiv 1802.07927, section 4.

    Example:
      >>> from fedjax_fm import robust
      >>> values = jnp.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [99.0]])
      >>> uploads = robust.Uploads(values, jnp.ones(7, bool), jnp.ones(7))
      >>> bulyan(1).reduce(uploads, (), None).value.tolist()
      [2.0]
    """
    checks.whole("liars", liars, least=0)

    def reduce(uploads, state, reference):
        n = count_of(uploads.accepted)
        n_selected = jnp.maximum(n - 2 * liars, 1)
        distances = squared_distances(gram_of(uploads))
        selected = repeated_krum(distances, uploads.accepted, liars, n_selected)
        n_close = jnp.maximum(n_selected - 2 * liars, 1)

        def of_block(block):
            median = masked_median(block, selected)
            gap = jnp.where(selected[:, None], jnp.abs(block - median), jnp.inf)
            order = jnp.argsort(gap, axis=0, stable=True)
            nearest = jnp.take_along_axis(block, order, axis=0)
            is_close = jnp.arange(len(block))[:, None] < n_close
            return mean_around(median, nearest, is_close)

        return Reduced(over_blocks(of_block, uploads.values))

    return Rule(reduce)


def repeated_krum(
    distances: jax.Array, chosen: jax.Array, liars: int, n_selected: jax.Array
) -> jax.Array:
    """The winners of Krum, each taken out before the next is looked for.

    Args:
      distances: f32[C, C], squared.
      chosen: bool[C], among whom.
      liars: f.
      n_selected: i32[], how many winners.

    Returns:
      bool[C].
    """

    def step(i, selected):
        scores = krum_scores(distances, chosen & ~selected, liars)
        return selected.at[jnp.argmin(scores)].set(True)

    n = jnp.minimum(n_selected, count_of(chosen))
    return jax.lax.fori_loop(0, n, step, jnp.zeros_like(chosen))
