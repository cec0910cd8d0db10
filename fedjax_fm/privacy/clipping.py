"""Sums of bounded contributions over a fixed denominator.

What the sensitivity of DP-FedAvg and DP-FTRL rests on.
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

      Lengths whose squares are beyond float32 are measured in units of the norm's power of two.

    Raises:
      TypeError: integers, bools or complex numbers among the leaves; a `norm` that is no number.
      ValueError: a negative `norm` or NaN.

    Example:
      >>> clipped, within = clip({"a": jnp.array([3.0, 4.0])}, 2.5)
      >>> clipped["a"].tolist(), bool(within)
      ([1.5, 2.0], False)
    """
    _refuse_other_types(tree)
    norm = jnp.asarray(checks.real("norm", norm, least=0, infinite=True), jnp.float32)
    # A power of two, so that the units cost no rounding; it and its inverse are normal numbers.
    _, exponent = jnp.frexp(jnp.where(jnp.isfinite(norm) & (norm > 0), norm, 1.0))
    units = jnp.ldexp(jnp.float32(1), -jnp.clip(exponent, -125, 126))
    length = optax.tree.norm(
        jax.tree.map(lambda x: x.astype(jnp.float32) * units, tree)
    )
    most, finite = norm * units, trees.all_finite(tree)
    within = finite & (length <= most)
    factor = jnp.where(within, 1.0, most / jnp.where(length > 0, length, 1.0))
    usable = finite & (norm >= 0)  # False for NaN, too

    def scaled(x):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.where(usable, wide * factor.astype(wide.dtype), 0).astype(x.dtype)

    return jax.tree.map(scaled, tree), within


def _refuse_other_types(tree: Tree) -> None:
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            found = f"{trees.path_of(path)} {jnp.result_type(leaf)}"
            raise TypeError(
                "expected floating leaves, which can be scaled to a norm, got "
                f"{found}; leave it out of delta"
            )


class ClippedMean(NamedTuple):
    """What the server gets."""

    mean: Tree  # f32 leaves
    # f32[], share of the planned cohort within the norm; those who did not come count a
    # half
    within: jax.Array
    cohort_size: int


def clipped_mean(norm_of: Callable[[Any], jax.Array | float]) -> Reduce:
    """Means of clipped contributions over the planned cohort, in which every client
    counts the same.

        mean   = sum_k clip(sent_k) / m
        within = sum_k (b_k - 1/2) / m + 1/2,  b_k: was k within the norm;  m = cohort_size

    Clipping comes after decoding: a clip inside the client bounds nothing once a
    quantiser or error feedback follows. The realised number of clients would be a
    data-dependent denominator: it is never used.

    Args:
      norm_of: `server_state -> clip norm`.

    `finish` gives a `ClippedMean`.

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
    """

    def lift(server, sent, weight):
        wide = jax.tree.map(
            lambda x: x.astype(jnp.float32) if x.dtype.itemsize < 4 else x, sent
        )
        clipped, within = clip(wide, norm_of(server))
        return clipped, within.astype(jnp.float32) - 0.5

    def finish(total, setting: Setting):
        mean, centred = jax.tree.map(lambda x: x / setting.cohort_size, total)
        return ClippedMean(
            mean=mean, within=centred + 0.5, cohort_size=setting.cohort_size
        )

    return Reduce(lift=lift, finish=finish)
