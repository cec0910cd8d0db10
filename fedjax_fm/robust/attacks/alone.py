"""Sign flips and noise, of clients that know nothing of each other.

Li, Xu, Chen, Giannakis, Ling, 2018, "RSA: Byzantine-Robust Stochastic Aggregation
Methods", arXiv 1811.03761; Blanchard et al. 2017, arXiv 1703.02757.

    sign flip:  -c x_k
    Gaussian:   N(0, s^2), in the place of x_k or added to it
"""

import jax

from fedjax_fm import checks
from fedjax_fm.robust.attacks.attack import Attack


def sign_flip(scale: float = 1.0) -> Attack:
    """Sends the opposite of what the client would send.

    Args:
      scale: c > 0, by which it is lengthened.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Li et al. 2018, arXiv 1811.03761, section 5.

    Example:
      >>> import jax.numpy as jnp
      >>> sign_flip(2.0).alone(jnp.array([1.0, -3.0]), None, None).tolist()
      [-2.0, 6.0]
    """
    checks.real("scale", scale, above=0)

    def lie(upload, message, key):
        return jax.tree.map(lambda x: -scale * x, upload)

    return Attack(alone=lie)


def gaussian(deviation: float, *, added: bool = False) -> Attack:
    """Sends noise.

    Args:
      deviation: standard deviation of each number, in the unit of the uploads.
      added: whether the noise is added to what the client would send.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Blanchard et al. 2017, arXiv 1703.02757, section 6.

    Example:
      >>> import jax.numpy as jnp
      >>> lie = gaussian(2.0).alone(jnp.ones(10_000), None, jax.random.key(0))
      >>> round(float(lie.std()), 1)
      2.0
    """
    checks.real("deviation", deviation, above=0)
    checks.flag("added", added)

    def lie(upload, message, key):
        leaves, structure = jax.tree.flatten(upload)
        told = []
        for i, x in enumerate(leaves):
            own = jax.random.fold_in(key, i)
            noise = deviation * jax.random.normal(own, x.shape)
            told.append(noise + (x if added else 0.0))
        return jax.tree.unflatten(structure, told)

    return Attack(alone=lie)
