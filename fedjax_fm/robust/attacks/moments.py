"""Lies that stay within what honest uploads look like: ALIE and IPM.

Baruch, Baruch, Goldberg, 2019, "A Little Is Enough: Circumventing Defenses For
Distributed Learning", arXiv 1902.06156; Xie, Koyejo, Gupta, 2019, "Fall of Empires:
Breaking Byzantine-tolerant SGD by Inner Product Manipulation", arXiv 1903.03936.

    ALIE   mu - z sigma, mean and deviation of each coordinate over the uploads seen
    IPM    -epsilon mu
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from fedjax_fm import checks
from fedjax_fm.robust.attacks.attack import Attack
from fedjax_fm.robust.attacks.statistics import deviation_of, mean_of
from fedjax_fm.robust.blocks import over_blocks


def alie(*, deviations: float | None = None) -> Attack:
    """Sends the mean, z standard deviations down in every coordinate.

    Args:
      deviations: z; None: the paper's, `supported_deviations` of the cohort.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Baruch et al. 2019, arXiv 1902.06156, algorithm 3.

    Example:
      >>> from fedjax_fm.robust import attacks
      >>> values = [jnp.array([[1.0], [3.0], [0.0]])]
      >>> seen = attacks.Seen(
      ...     values=values, visible=jnp.array([1, 1, 0]) > 0, n=3, n_liars=1
      ... )
      >>> alie(deviations=0.0).together(seen)[0].tolist()
      [2.0]
    """
    if deviations is not None:
        checks.real("deviations", deviations, least=0)

    def lie(seen):
        z = deviations
        if z is None:
            z = supported_deviations(seen.n, seen.n_liars)

        def of_block(block):
            return mean_of(block, seen.visible) - z * deviation_of(block, seen.visible)

        return over_blocks(of_block, seen.values)

    return Attack(together=lie)


def ipm(scale: float) -> Attack:
    """Sends the opposite of the mean.

    The mean of n uploads with f such lies is ((n - f) - epsilon f) / n mu: it turns
    around for epsilon > (n - f) / f.

    Args:
      scale: epsilon > 0.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Xie et al. 2019, arXiv 1903.03936, section 4.

    Example:
      >>> from fedjax_fm.robust import attacks
      >>> values = [jnp.array([[1.0], [3.0], [0.0]])]
      >>> seen = attacks.Seen(
      ...     values=values, visible=jnp.array([1, 1, 0]) > 0, n=3, n_liars=1
      ... )
      >>> ipm(0.5).together(seen)[0].tolist()
      [-1.0]
    """
    checks.real("scale", scale, above=0)

    def lie(seen):
        def of_block(block):
            return -scale * mean_of(block, seen.visible)

        return over_blocks(of_block, seen.values)

    return Attack(together=lie)


def supported_deviations(n: jax.Array | int, n_liars: jax.Array | int) -> jax.Array:
    """The z of ALIE: honest clients further out than that make a majority with liars.

        z = Phi^-1((n - f - s) / (n - f)),  s = floor(n / 2 + 1) - f

    Args:
      n: uploads of the cohort.
      n_liars: f, of these.

    Returns:
      f32[]; 0 at least, also where liars have a majority themselves.

    Example:
      >>> round(float(supported_deviations(25, 11)), 4)
      1.0676
    """
    honest = jnp.maximum(n - n_liars, 1)
    supporters = n // 2 + 1 - n_liars
    quantile = jnp.clip((honest - supporters) / honest, 0.5, 1 - 1e-6)
    return ndtri(quantile)
