"""Norm bounding: what one client moves is limited.

Sun, Kairouz, Suresh, McMahan, 2019, "Can You Really Backdoor Federated Learning?",
arXiv 1911.07963.

    mean_k clip(x_k, M)
"""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.privacy import clip
from fedjax_fm.robust.distances import shares
from fedjax_fm.robust.rule import Reduced, Rule


def norm_bound(bound: float) -> Rule:
    """The mean of uploads whose l2 norm over the whole message is cut to a bound.

    By itself it tolerates no liar: it limits to f M / m what f of them move. The clip
    is `privacy.clip`, that of DP-FedAvg.

    Args:
      bound: M > 0, in the unit of the uploads; infinity bounds nothing.

    Returns:
      A rule; clients may count by weights.

    Raises:
      TypeError, ValueError: a bound out of bounds.

    References:
      Sun et al. 2019, arXiv 1911.07963, section 5.

    Example:
      >>> from fedjax_fm import robust
      >>> values, ones = jnp.array([[1.0], [9.0]]), jnp.ones(2)
      >>> uploads = robust.Uploads(values, ones > 0, ones)
      >>> norm_bound(3.0).reduce(uploads, (), None).value.tolist()
      [2.0]
    """
    checks.real("bound", bound, above=0, infinite=True)

    def reduce(uploads, state, reference):
        share = shares(uploads.weights)

        def add(k, total):
            clipped, _ = clip(jax.tree.map(lambda x: x[k], uploads.values), bound)
            return jax.tree.map(lambda t, x: t + share[k] * x, total, clipped)

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), uploads.values)
        return Reduced(jax.lax.fori_loop(0, len(share), add, zeros))

    return Rule(reduce, takes_weights=True)
