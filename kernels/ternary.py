"""Three levels: a sign or nothing, times the norm of the block."""

import jax

from fedjax_fm.kernels.quantize import stochastic_quantize


def ternary_encode(
    x: jax.Array, key: jax.Array, norm: str = "max"
) -> tuple[jax.Array, jax.Array]:
    """Rounds the entries of one block at random to -1, 0 or 1 times its norm.

        ||x||_p sign(x_i) Bernoulli(|x_i| / ||x||_p)

    DIANA's p-quantisation. Unbiased; E ||Q(x) - x||^2 = ||x||_1 ||x||_p - ||x||^2 and
    E ||Q(x)||_0 = ||x||_1 / ||x||_p, both exactly.

    Args:
      x: f32[m].
      key: consumed; one number an entry.
      norm: "max" (p = infinity) or "l2".

    Returns:
      (i8[m] in {-1, 0, 1}, f32[] norm).

    References:
      Mishchenko et al., DIANA, 2019, arXiv 1901.09269, definition 1.
    """
    return stochastic_quantize(x, key, 1, norm)
