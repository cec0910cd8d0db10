"""Centred clipping: bounded steps from the last round's value.

Karimireddy, He, Jaggi, 2021, "Learning from History for Byzantine Robust Optimization",
arXiv 2012.10333.

    v <- v + mean_k clip(x_k - v, tau),  L times; v starts at the last round's value
"""

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.robust.blocks import over_blocks, sum_over_blocks
from fedjax_fm.robust.distances import shares
from fedjax_fm.robust.rule import Reduced, Rule


def centred_clipping(radius: float, *, iterations: int = 1) -> Rule:
    """Steps from the last round's value towards the uploads, each of bounded length.

    One iteration moves by at most tau, and f liars of m clients by f tau / m of that.
    The first round starts from zero. An upload further away than float32 can square
    counts as no step. The theory wants clients with momentum. With an infinite radius
    and one iteration it is the mean.

    Args:
      radius: tau > 0, in the unit of the uploads; infinity clips nothing.
      iterations: L of a round.

    Returns:
      A rule whose state is the last value; clients count the same.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Karimireddy et al. 2021, arXiv 2012.10333, algorithm 2.

    Example:
      >>> from fedjax_fm import robust
      >>> values, ones = jnp.array([[2.0], [1.0], [1e9]]), jnp.ones(3)
      >>> uploads = robust.Uploads(values, ones > 0, ones)
      >>> rule = centred_clipping(3.0)
      >>> rule.reduce(uploads, rule.init(jnp.zeros(1)), None).value.tolist()
      [2.0]
    """
    checks.real("radius", radius, above=0, infinite=True)
    checks.whole("iterations", iterations, least=1)

    def init(message):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), message)

    def reduce(uploads, state, reference):
        if problem := trees.difference(state, _one_of(uploads.values)):
            raise ValueError(
                "centred clipping expects uploads of the form of the trainable tree, "
                f"around which it can start: {problem}"
            )
        share = shares(jnp.where(uploads.accepted, 1.0, 0.0))

        def step(i, centre):
            around = jax.tree.map(lambda v: v[None], centre)
            lengths = _lengths(uploads.values, around)
            factors = jnp.where(lengths > radius, radius / lengths, 1.0)
            moves = jnp.where(uploads.accepted, share * factors, 0.0)
            return over_blocks(_moved(moves), uploads.values, around)

        value = jax.lax.fori_loop(0, iterations, step, state)
        return Reduced(value, state=value)

    return Rule(reduce, init=init)


def _one_of(values):
    """Shapes of one upload."""
    return jax.eval_shape(lambda v: jax.tree.map(lambda x: x[0], v), values)


def _lengths(values, around) -> jax.Array:
    """f32[C]: |x_k - v|; infinite where its square is."""

    def squares(x, v):
        return jnp.sum((x - v) ** 2, axis=1)

    return jnp.sqrt(sum_over_blocks(squares, values, around))


def _moved(moves: jax.Array):
    """`(x, v) -> v + sum_k moves_k (x_k - v)`."""

    def of_block(x, v):
        steps = jnp.where(moves[:, None] != 0, x - v, 0.0)
        return v[0] + jnp.matmul(moves, steps, precision="highest")

    return of_block
