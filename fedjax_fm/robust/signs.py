"""Sign majority: each client has one vote a coordinate.

Bernstein, Zhao, Azizzadenesheli, Anandkumar, 2018, "signSGD with Majority Vote is
Communication Efficient and Fault Tolerant", arXiv 1810.05291.

    server:  w <- w - eta sign(sum_k sign(x_k))
"""

import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.robust.blocks import over_blocks
from fedjax_fm.robust.rule import Reduced, Rule


def sign_majority(step_size: float) -> Rule:
    """A step of fixed length in every coordinate, to the side of the majority.

        step_size * sign(sum_k sign(x_k)),  where zero counts as positive, a tie gives 0

    A coordinate keeps the side of the honest majority while fewer lie than that
    majority is larger than the honest minority. What is billed is the upload as it is
    sent: `channels.sign` sends one bit a number.

    Args:
      step_size: eta > 0, of the update that the server gets.

    Returns:
      A rule; clients count the same, whatever their lengths.

    Raises:
      TypeError, ValueError: a step out of bounds.

    References:
      Bernstein et al. 2018, arXiv 1810.05291, algorithm 1.

    Example:
      >>> from fedjax_fm import robust
      >>> values, ones = jnp.array([[1.0, 2.0], [0.1, -3.0]]), jnp.ones(2)
      >>> uploads = robust.Uploads(values, ones > 0, ones)
      >>> sign_majority(0.5).reduce(uploads, (), None).value.tolist()
      [0.5, 0.0]
    """
    checks.real("step_size", step_size, above=0)

    def reduce(uploads, state, reference):
        accepted = uploads.accepted[:, None]

        def of_block(block):
            votes = jnp.where(block >= 0, 1.0, -1.0)
            return step_size * jnp.sign(jnp.sum(votes * accepted, axis=0))

        return Reduced(over_blocks(of_block, uploads.values))

    return Rule(reduce)
