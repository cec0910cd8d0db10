"""FedASK's sketches of products, and the factors that are made of them."""

import jax
import jax.numpy as jnp

from fedjax_fm import linalg
from fedjax_fm.algorithms.lora_rules.factors import Factors, Pair
from fedjax_fm.algorithms.lora_rules.flexlora import truncated_svd

Sketches = dict[str, jax.Array]  # {layer: [s, ..., in or out]}


def random_directions(factors: Factors, seed: jax.Array, sketch: int) -> Sketches:
    """Omega of every layer, the same in all rounds.

    Args:
      factors: of the server.
      seed: u32[2], of the server state.
      sketch: s.

    Returns:
      {layer: f32[in, s]}; layers in one stack share it.
    """
    key = jax.random.wrap_key_data(seed)
    found = {}
    for number, (layer, pair) in enumerate(factors.pairs.items()):
        shape = pair.a.shape[-1], sketch
        found[layer] = jax.random.normal(jax.random.fold_in(key, number), shape)
    return found


def sketched(pair: Pair, directions: jax.Array) -> jax.Array:
    """The product of a pair times some directions, without the product.

    Args:
      pair: a [r, ..., in], b [r, ..., out].
      directions: [in, s], or [..., in, s] for each layer of a stack.

    Returns:
      (sum_i a_i b_i^T)^T directions, [s, ..., out].
    """
    inside = jnp.einsum("r...i,...is->...rs", pair.a, directions)
    return jnp.einsum("...rs,r...o->s...o", inside, pair.b)


def orthonormal_rows(x: jax.Array) -> jax.Array:
    """Orthonormal rows of the same span.

    Args:
      x: [s, ..., out].

    Returns:
      [min(s, out), ..., out].
    """
    columns = jnp.moveaxis(x, 0, -1)
    q, _ = linalg.qr(columns)
    return jnp.moveaxis(q, -1, 0)


def balanced(pair: Pair, rank: int) -> Pair:
    """The best pair of a rank, its singular values shared by both factors.

    Args:
      pair: [rows, ..., in or out], whose product is approximated.
      rank: rows that are kept.

    Returns:
      A pair [rank, ..., in or out]; where a singular value is zero, a row of unit length
      in a beside zeros in b.
    """
    (a, b), _ = truncated_svd(pair, rank)
    values = jnp.linalg.norm(b, axis=-1, keepdims=True)
    root = jnp.where(values > 0, jnp.sqrt(values), 1.0)
    return Pair(root * a, b / root)
