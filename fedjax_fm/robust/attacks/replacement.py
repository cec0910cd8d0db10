"""Model replacement: one upload that moves the mean to where a liar wants it.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, 2018, "How To Backdoor Federated Learning",
arXiv 1807.00459.

    replacement:      c (w - X), which takes the server to X
    train and scale:  c x_k, at most of a length
"""

import jax

from fedjax_fm import checks, trees
from fedjax_fm.privacy import clip
from fedjax_fm.robust.attacks.attack import Attack
from fedjax_fm.types import Tree


def replacement(target: Tree, *, scale: float) -> Attack:
    """Sends what makes the target of the mean, where the others' updates cancel.

    With scale 1 / (p_k eta), p_k the client's share of the mean and eta the server's
    learning rate, the next model is exactly the target if all others send zeros.

    Args:
      target: X, like the trainable tree.
      scale: c > 0.

    Raises:
      TypeError, ValueError: a number out of bounds; where a round is traced, a method
        whose clients are sent something else than the trainable tree and send its
        difference, w - w_k.

    References:
      Bagdasaryan et al. 2018, arXiv 1807.00459, equation 3.

    Example:
      >>> import jax.numpy as jnp
      >>> attack = replacement(jnp.array([5.0]), scale=3.0)
      >>> attack.alone(jnp.array([0.1]), jnp.array([1.0]), None).tolist()
      [-12.0]
    """
    checks.real("scale", scale, above=0)

    def lie(upload, message, key):
        for other in (message, upload):
            if problem := trees.difference(trees.shapes(target), other):
                raise ValueError(
                    "expected a method that sends the trainable tree down and its "
                    f"difference up, like the target: {problem}"
                )
        return jax.tree.map(lambda w, x: scale * (w - x), message, target)

    return Attack(alone=lie)


def boosted(scale: float, *, most_norm: float = float("inf")) -> Attack:
    """Sends what the client trained, lengthened up to a norm that goes unnoticed.

    On poisoned data (`poisoned`) it is train-and-scale.

    Args:
      scale: c > 0.
      most_norm: l2 over the whole message.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Bagdasaryan et al. 2018, arXiv 1807.00459, section 4.3.

    Example:
      >>> import jax.numpy as jnp
      >>> attack = boosted(10.0, most_norm=10.0)
      >>> attack.alone(jnp.array([3.0, 4.0]), None, None).tolist()
      [6.0, 8.0]
    """
    checks.real("scale", scale, above=0)
    checks.real("most_norm", most_norm, above=0, infinite=True)

    def lie(upload, message, key):
        longer = jax.tree.map(lambda x: scale * x, upload)
        return clip(longer, most_norm)[0]

    return Attack(alone=lie)
