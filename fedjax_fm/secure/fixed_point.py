"""Numbers as whole numbers, so that masks cancel and sums do not depend on their order.

code = floor(x R / 2c) + Bernoulli(the rest) + R / 2,   x clipped to [-c, c]
sum of x ~ (sum of codes - n R / 2) 2c / R
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.types import Tree

WORD = 32  # bits of a code in memory


class FixedPoint(NamedTuple):
    """How numbers become codes from 0 to `levels`.

    Attributes:
      clip: c, numbers are cut to [-c, c].
      levels: R, even; a step is 2 c / R.
    """

    clip: float = 8.0
    levels: int = 2**22

    @property
    def step(self) -> float:
        """The distance of two codes' numbers."""
        return 2 * self.clip / self.levels

    @property
    def most_clients(self) -> int:
        """How many clients' codes have a sum below 2^32."""
        return (2**WORD - 1) // self.levels

    def bits(self, n_clients: int) -> int:
        """Bits in which the sum of that many clients' codes does not wrap.

        Args:
          n_clients: m; ceil(log2(m R + 1)) bits.

        Raises:
          ValueError: more than 32.

        Example:
          >>> FixedPoint().bits(8)
          26
        """
        checks.whole("n_clients", n_clients, least=1)
        if n_clients > self.most_clients:
            raise ValueError(
                f"the sum of {n_clients} clients' codes of up to {self.levels} wraps "
                f"around at 2^32: expected at most {self.most_clients} clients, or fewer "
                "levels"
            )
        return (n_clients * self.levels).bit_length()

    def checked(self) -> "FixedPoint":
        """Itself, after a check of its values.

        Raises:
          TypeError, ValueError: names the value that makes no sense.
        """
        checks.real("clip", self.clip, above=0)
        checks.whole("levels", self.levels, least=2, most=2**24)
        if self.levels % 2:
            raise ValueError(f"expected an even number of levels, got {self.levels}")
        return self


def encode(tree: Tree, fixed: FixedPoint, key: jax.Array) -> Tree:
    """Rounds each number at random to one of the two next codes.

    The mean over the draws is the clipped number; the variance is p (1 - p) steps^2, p
    the rest above the lower code, at most a quarter.

    Args:
      tree: of floating leaves.
      fixed: clip and levels.
      key: of the draws.

    Returns:
      u32 leaves, from 0 to `levels`.

    References:
      Bonawitz et al. 2019, "Federated Learning with Autotuned Communication-Efficient
      Secure Aggregation", arXiv 1912.00131, section 3.

    Example:
      >>> codes = encode(jnp.array([-9.0, 0.0, 8.0]), FixedPoint(), jax.random.key(0))
      >>> codes.tolist()
      [0, 2097152, 4194304]
    """
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    half = fixed.levels // 2

    def one(x: jax.Array, key: jax.Array) -> jax.Array:
        steps = jnp.clip(x.astype(jnp.float32), -fixed.clip, fixed.clip) / fixed.step
        below = jnp.floor(steps)
        rounds_up = jax.random.uniform(key, jnp.shape(x)) < steps - below
        return (below.astype(jnp.int32) + rounds_up + half).astype(jnp.uint32)

    return form.unflatten([one(x, own) for x, own in zip(leaves, keys, strict=False)])


def decode(total: Tree, n_clients: jax.Array | int, fixed: FixedPoint) -> Tree:
    """The sum of the numbers behind a sum of codes.

    Args:
      total: u32 leaves, sums modulo 2^32 of the codes of `n_clients`.
      n_clients: whose codes were added up; NaN comes out where they may have wrapped.
      fixed: clip and levels.

    Returns:
      f32 leaves.

    Example:
      >>> total = encode(jnp.array([1.0, -2.0]), FixedPoint(), jax.random.key(0))
      >>> decode(2 * total, 2, FixedPoint()).tolist()
      [2.0, -4.0]
    """
    n = jnp.asarray(n_clients, jnp.uint32)
    is_whole = n <= fixed.most_clients
    offset = n * jnp.uint32(fixed.levels // 2)

    def one(x: jax.Array) -> jax.Array:
        # Modulo 2^32: the difference is a number from -2^31 to 2^31 again.
        steps = jax.lax.bitcast_convert_type(x - offset, jnp.int32)
        return jnp.where(is_whole, steps.astype(jnp.float32) * fixed.step, jnp.nan)

    return jax.tree.map(one, total)
