"""Sums of bounded contributions over a fixed denominator.

The sensitivity of DP-FedAvg and DP-FTRL rests on them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.types import Reduce, Setting, Tree


def clip(tree: Tree, norm: jax.Array | float) -> tuple[Tree, jax.Array]:
    """Scales a tree to a length of at most `norm`.

        tree * min(1, norm / ||tree||),  ||.|| the l2 norm over all leaves, in float32

    Args:
      tree: floating leaves.
      norm: f32[] or a number, 0 to infinity.

    Returns:
      (tree of the same types, bool[]: was it within the norm).

    Formal guarantees:
      The l2 norm of the result is at most `norm`, up to the rounding of each leaf's
      type, for every tree:

      | tree | norm | result | within |
      |---|---|---|---|
      | not finite | any | zeros | False |
      | finite | infinity | the tree, bit for bit | True |
      | zeros | 0 and above | zeros | True |
      | not zero | 0 | zeros | False |
      | any | traced, NaN or negative | zeros | False |

      Lengths whose squares are beyond float32 are measured in units of the norm's power
      of two.

    Raises:
      TypeError: integers, bools or complex numbers among the leaves; a `norm` that is
        no number.
      ValueError: a negative `norm` or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import privacy
      >>> clipped, within = privacy.clip({"a": jnp.array([3.0, 4.0])}, 2.5)
      >>> clipped["a"].tolist(), bool(within)
      ([1.5, 2.0], False)
    """
    _refuse_other_types(tree)
    norm = jnp.asarray(checks.real("norm", norm, least=0, infinite=True), jnp.float32)
    # A power of two, so that the units cost no rounding; it and its inverse are normal
    # numbers.
    ordinary = jnp.isfinite(norm) & (norm > 0)
    _, exponent = jnp.frexp(jnp.where(ordinary, norm, 1.0))
    exponent = jnp.clip(exponent, -125, 126)
    units = jnp.ldexp(jnp.float32(1), -exponent)
    in_units = jax.tree.map(lambda x: x.astype(jnp.float32) * units, tree)
    length = optax.tree.norm(in_units)
    most, finite = norm * units, trees.all_finite(tree)
    within = finite & (length <= most)
    factor = jnp.where(within, 1.0, most / jnp.where(length > 0, length, 1.0))
    usable = finite & (norm >= 0)  # False for NaN, too

    def scaled(x):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        shorter = wide * factor.astype(wide.dtype)
        return jnp.where(usable, shorter, 0).astype(x.dtype)

    return jax.tree.map(scaled, tree), within


def _refuse_other_types(tree: Tree) -> None:
    """Refuses leaves that cannot be scaled."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            found = f"{trees.path_of(path)} {jnp.result_type(leaf)}"
            raise TypeError(
                "expected floating leaves, which can be scaled to a norm, got "
                f"{found}; leave it out of delta"
            )


class ClippedMean(NamedTuple):
    """The value that the server gets from `clipped_mean`.

    Attributes:
      mean: f32 leaves.
      within: f32[], share of the planned cohort within the norm; clients that did not
        come count a half.
      cohort_size: m, planned.
    """

    mean: Tree
    within: jax.Array
    cohort_size: int


def clipped_mean(norm_of: Callable[[Any], jax.Array | float]) -> Reduce:
    """The mean of clipped contributions over the planned cohort.

        mean   = sum_k clip(sent_k) / m,  m = cohort_size
        within = sum_k (b_k - 1/2) / m + 1/2,  b_k: was k within the norm

    Every client counts the same. Clipping comes after decoding: a clip inside the
    client bounds nothing once a quantiser or error feedback follows. The realised
    number of clients would be a data-dependent denominator: it is never used.

    Args:
      norm_of: `server_state -> clip norm`, f32[].

    Returns:
      A reduction whose `finish` gives a `ClippedMean`.

    Formal guarantees:
      A client, whatever it sends, what its weight is and what state it keeps,
      contributes a vector of norm at most S and a count of -1/2 or 1/2; a client that
      does not come contributes zeros. So with one client more or less

          ||change of mean|| <= S / m,  |change of within| <= 1 / (2 m),

      and with one client's data replaced twice that. Contributions are float32 and so
      is their sum, also of a delta in bfloat16. Both are exact: it is the server that
      adds noise.

    References:
      Andrew et al., Differentially Private Learning with Adaptive Clipping, 2021, arXiv
      1905.03871, theorem 1, whose count of sensitivity 1/2 is a centred one.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import privacy
      >>> from fedjax_fm.types import Setting
      >>> def norm_of(server):
      ...     return server["clip"]
      >>> reduce, server = privacy.clipped_mean(norm_of), {"clip": 1.0}
      >>> upload, weight = jnp.array([0.0, 4.0]), jnp.float32(10.0)
      >>> total = reduce.lift(server, upload, weight)  # one client came
      >>> found = reduce.finish(total, Setting(n_clients=100, cohort_size=2))
      >>> found.mean.tolist(), float(found.within)
      ([0.0, 0.5], 0.25)
    """

    def lift(server, sent, weight):
        wide = jax.tree.map(_widened, sent)
        clipped, within = clip(wide, norm_of(server))
        return clipped, within.astype(jnp.float32) - 0.5

    def finish(total, setting: Setting):
        mean, centred = jax.tree.map(lambda x: x / setting.cohort_size, total)
        return ClippedMean(
            mean=mean, within=centred + 0.5, cohort_size=setting.cohort_size
        )

    return Reduce(lift=lift, finish=finish)


def _widened(x: jax.Array) -> jax.Array:
    """A leaf in float32 if it is narrower."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
