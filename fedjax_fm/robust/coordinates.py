"""Median and trimmed mean of every coordinate.

Yin, Chen, Ramchandran, Bartlett, 2018, "Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates", arXiv 1803.01498.

    median:   the middle one of x_1j ... x_mj, the mean of the two for even m
    trimmed:  the mean without the b smallest and the b largest of x_1j ... x_mj
"""

import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.robust.blocks import over_blocks
from fedjax_fm.robust.masked import masked_median, mean_around, sorted_rows
from fedjax_fm.robust.rule import Reduced, Rule, count_of


def coordinate_median() -> Rule:
    """The median of every coordinate; of an even number the mean of the two in the middle.

    Each coordinate lies among those of honest clients while fewer than half lie. The
    median of all coordinates may be far from every upload.

    Returns:
      A rule; clients count the same.

    References:
      Yin et al. 2018, arXiv 1803.01498, definition 1.

    Example:
      >>> from fedjax_fm import robust
      >>> values, ones = jnp.array([[1.0], [2.0], [1e20]]), jnp.ones(3)
      >>> uploads = robust.Uploads(values, ones > 0, ones)
      >>> coordinate_median().reduce(uploads, (), None).value.tolist()
      [2.0]
    """

    def reduce(uploads, state, reference):
        accepted = uploads.accepted

        def of_block(block):
            return masked_median(block, accepted)

        return Reduced(over_blocks(of_block, uploads.values))

    return Rule(reduce)


def trimmed_mean(trim: float) -> Rule:
    """The mean of every coordinate without its smallest and its largest values.

    On each side b = floor(trim m) values are dropped, with m uploads. Each coordinate
    lies among those of honest clients while at most b clients lie. With trim 0 it is
    the mean.

    Args:
      trim: of each side, 0 <= trim < 1/2.

    Returns:
      A rule; clients count the same.

    Raises:
      TypeError, ValueError: a share out of bounds.

    References:
      Yin et al. 2018, arXiv 1803.01498, definition 2.

    Example:
      >>> from fedjax_fm import robust
      >>> values, ones = jnp.array([[1.0], [2.0], [1e20], [3.0], [0.0]]), jnp.ones(5)
      >>> uploads = robust.Uploads(values, ones > 0, ones)
      >>> trimmed_mean(0.2).reduce(uploads, (), None).value.tolist()
      [2.0]
    """
    checks.real("trim", trim, least=0, below=0.5)

    def reduce(uploads, state, reference):
        n = count_of(uploads.accepted)
        # A product such as 0.3 * 10 may be a rounding error below its whole number.
        dropped = jnp.floor(trim * n + 1e-4).astype(jnp.int32)
        rank = jnp.arange(len(uploads.accepted))[:, None]
        is_kept = (rank >= dropped) & (rank < n - dropped)

        def of_block(block):
            ordered = sorted_rows(block, uploads.accepted)
            return mean_around(ordered[n // 2], ordered, is_kept)

        return Reduced(over_blocks(of_block, uploads.values))

    return Rule(reduce)
