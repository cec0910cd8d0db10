"""Lies as far out as distances between honest uploads cover: min-max and min-sum.

Shejwalkar, Houmansadr, 2021, "Manipulating the Byzantine: Optimizing Model Poisoning
Attacks and Defenses for Federated Learning" (NDSS).

    mu + gamma p, with the largest gamma for which
    min-max:  max_k |mu + gamma p - x_k|       <= max_ij |x_i - x_j|
    min-sum:  sum_k |mu + gamma p - x_k|^2     <= max_i sum_j |x_i - x_j|^2

The authors search gamma by halving; both have a closed form, which is taken here. With
y_k = x_k - mu, which add up to zero, the sums are n gamma^2 |p|^2 + sum_k |y_k|^2 and
n |y_i|^2 + sum_j |y_j|^2. (The authors' code takes the smallest sum in min-sum, the
paper the largest.)
"""

import jax
import jax.numpy as jnp

from fedjax_fm.robust.attacks.attack import Attack
from fedjax_fm.robust.attacks.outwards import Direction, Margins, outwards
from fedjax_fm.robust.distances import squared_distances


def min_max(direction: Direction = "deviation") -> Attack:
    """Sends a point no further from any upload than two of them are from each other.

    Args:
      direction: p, "mean" is -mu, "sign" is -sign(mu), "deviation" minus the standard
        deviation of every coordinate.

    Raises:
      ValueError: another direction.

    References:
      Shejwalkar and Houmansadr 2021, NDSS, equation 4.

    Example:
      >>> from fedjax_fm.robust import attacks
      >>> values = [jnp.array([[1.0], [3.0], [0.0]])]
      >>> seen = attacks.Seen(
      ...     values=values, visible=jnp.array([1, 1, 0]) > 0, n=3, n_liars=1
      ... )
      >>> min_max("mean").together(seen)[0].tolist()
      [1.0]
    """

    def most(margins: Margins) -> jax.Array:
        """The smallest root of |y_k|^2 - 2 g <p, y_k> + g^2 |p|^2 = max distance^2."""
        seen = margins.visible
        between = squared_distances(margins.gram)
        both = seen[:, None] & seen[None, :]
        bound = jnp.max(jnp.where(both, between, 0.0))
        spare = jnp.maximum(bound - jnp.diagonal(margins.gram), 0.0)
        under_root = margins.along**2 + margins.length * spare
        roots = (margins.along + jnp.sqrt(under_root)) / _divisor(margins.length)
        return jnp.min(jnp.where(seen, roots, jnp.inf))

    return outwards(direction, most)


def min_sum(direction: Direction = "deviation") -> Attack:
    """Sends a point whose squared distances add up to no more than those of an upload.

    Args:
      direction: p, as of `min_max`.

    Raises:
      ValueError: another direction.

    References:
      Shejwalkar and Houmansadr 2021, NDSS, equation 5.

    Example:
      >>> from fedjax_fm.robust import attacks
      >>> values = [jnp.array([[1.0], [3.0], [0.0]])]
      >>> seen = attacks.Seen(
      ...     values=values, visible=jnp.array([1, 1, 0]) > 0, n=3, n_liars=1
      ... )
      >>> min_sum("mean").together(seen)[0].tolist()
      [1.0]
    """

    def most(margins: Margins) -> jax.Array:
        """max_k |y_k| / |p|."""
        largest = jnp.max(jnp.diagonal(margins.gram))
        return jnp.sqrt(largest / _divisor(margins.length))

    return outwards(direction, most)


def _divisor(length: jax.Array) -> jax.Array:
    return jnp.where(length > 0, length, 1.0)
