"""Vectors as a few codes each: every table quantises what those before it have left.

    r_1 = x,   c_q = argmin_k ||r_q - E_q[k]||^2,   r_(q+1) = r_q - E_q[c_q]
    x is decoded as sum_q E_q[c_q]

References:
  Zeghidour et al., 2021, SoundStream, arXiv 2107.03312 (residual vector quantisation of
  sound, k-means at the start); van den Oord et al., 2017, arXiv 1711.00937 (the
  straight-through gradient and both losses).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks


class Quantized(NamedTuple):
    """Vectors that were replaced by what their codes say.

    Attributes:
      vectors: f32[..., d]; their gradient goes to the input as if nothing had been done.
      codes: i32[..., Q].
      commitment: f32[...], mean square of what is left, differentiated in the input.
      codebook: f32[...], the same number, differentiated in the tables.
    """

    vectors: jax.Array
    codes: jax.Array
    commitment: jax.Array
    codebook: jax.Array


def rvq_encode(tables: jax.Array, vectors: jax.Array) -> jax.Array:
    """The codes of vectors, the nearest entry of each table in turn.

    Args:
      tables: f[Q, K, d].
      vectors: f[..., d].

    Returns:
      i32[..., Q]; of entries that are equally near the first.

    Raises:
      ValueError: shapes that do not fit.

    References:
      Zeghidour et al., 2021, arXiv 2107.03312.

    Example:
      >>> tables = jnp.array([[[0.0], [4.0]], [[-1.0], [1.0]]])
      >>> rvq_encode(tables, jnp.array([[3.2], [0.7]])).tolist()
      [[1, 0], [0, 1]]
    """
    _check(tables, vectors)

    def step(left: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
        code = _nearest(table, left)
        return left - table[code], code

    _, codes = jax.lax.scan(step, vectors, tables)
    return jnp.moveaxis(codes, 0, -1)


def rvq_decode(tables: jax.Array, codes: jax.Array) -> jax.Array:
    """The vectors that codes stand for.

    Args:
      tables: f[Q, K, d].
      codes: i32[..., Q], or the first of them: fewer codes are a coarser vector.

    Returns:
      f[..., d].

    Raises:
      ValueError: more codes than tables.

    Example:
      >>> tables = jnp.array([[[0.0], [4.0]], [[-1.0], [1.0]]])
      >>> rvq_decode(tables, jnp.array([[1, 0], [0, 1]])).tolist()
      [[3.0], [1.0]]
    """
    n = codes.shape[-1]
    if n > len(tables):
        raise ValueError(f"expected at most {len(tables)} codes a vector, got {n}")
    parts = [tables[q][codes[..., q]] for q in range(n)]
    return sum(parts[1:], parts[0])


def rvq_straight_through(tables: jax.Array, vectors: jax.Array) -> Quantized:
    """Vectors replaced by what their codes say, and the losses that train a codec.

    Args:
      tables: f[Q, K, d].
      vectors: f[..., d].

    Returns:
      `Quantized`; an encoder is trained by the commitment, usually times 0.25, and
      the tables by the other loss.

    References:
      van den Oord et al., 2017, arXiv 1711.00937, section 3.2, equation (3).

    Example:
      >>> tables = jnp.array([[[0.0], [4.0]]])
      >>> def total(x):
      ...     return rvq_straight_through(tables, x).vectors.sum()
      >>> jax.grad(total)(jnp.array([[3.2]])).tolist()
      [[1.0]]
    """
    codes = rvq_encode(*jax.lax.stop_gradient((tables, vectors)))
    decoded = rvq_decode(tables, codes)
    fixed = jax.lax.stop_gradient(decoded)
    apart = jax.lax.stop_gradient(vectors) - decoded
    return Quantized(
        vectors=vectors + jax.lax.stop_gradient(decoded - vectors),
        codes=codes,
        commitment=jnp.mean(jnp.square(vectors - fixed), axis=-1),
        codebook=jnp.mean(jnp.square(apart), axis=-1),
    )


def fit_rvq(
    vectors: jax.Array, n_tables: int, n_codes: int, key: jax.Array, steps: int = 20
) -> jax.Array:
    """Tables by Lloyd's k-means, each on what the tables before it have left.

    Args:
      vectors: f[n, d], at least `n_codes` of them.
      n_tables: Q.
      n_codes: K.
      key: draws the vectors at which each table begins.
      steps: of Lloyd's algorithm.

    Returns:
      f32[Q, K, d]. An entry to which no vector is nearest stays where it was.

    Raises:
      TypeError, ValueError: numbers out of range, or fewer vectors than codes.

    References:
      Zeghidour et al., 2021, arXiv 2107.03312 (k-means at the start).

    Example:
      >>> points = jnp.array([[0.0], [0.0], [8.0], [8.0]])
      >>> tables = fit_rvq(points, 1, 2, jax.random.key(0))
      >>> sorted(tables[0, :, 0].tolist())
      [0.0, 8.0]
    """
    checks.whole("n_tables", n_tables, least=1)
    checks.whole("n_codes", n_codes, least=1)
    checks.whole("steps", steps, least=0)
    if vectors.ndim != 2 or len(vectors) < n_codes:
        raise ValueError(
            f"expected vectors [n, d], n at least n_codes={n_codes}, got "
            f"{list(vectors.shape)}"
        )
    left, tables = vectors.astype(jnp.float32), []
    for key_of_table in jax.random.split(key, n_tables):
        rows = jax.random.permutation(key_of_table, len(left))[:n_codes]
        table = lloyd(left, left[rows], steps)
        tables.append(table)
        left = left - table[_nearest(table, left)]
    return jnp.stack(tables)


def lloyd(vectors: jax.Array, table: jax.Array, steps: int) -> jax.Array:
    """Moves each entry to the mean of the vectors that are nearest to it.

    Args:
      vectors: f32[n, d].
      table: f32[K, d], at first.
      steps: how often.

    Returns:
      f32[K, d].
    """

    def step(_: jax.Array, table: jax.Array) -> jax.Array:
        chosen = jax.nn.one_hot(_nearest(table, vectors), len(table))  # [n, K]
        counts = chosen.sum(axis=0)[:, None]
        means = chosen.T @ vectors / jnp.maximum(counts, 1)
        return jnp.where(counts > 0, means, table)

    return jax.lax.fori_loop(0, steps, step, table)


def _nearest(table: jax.Array, vectors: jax.Array) -> jax.Array:
    """The entry of f[K, d] that is nearest to each of f[..., d], i32[...]."""
    products = jnp.einsum("...d,kd->...k", vectors, table, precision="highest")
    distances = jnp.sum(jnp.square(table), axis=-1) - 2 * products
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def _check(tables: jax.Array, vectors: jax.Array) -> None:
    """Refuses tables and vectors of different width."""
    if tables.ndim != 3 or vectors.ndim < 1 or vectors.shape[-1] != tables.shape[-1]:
        raise ValueError(
            "expected tables [Q, K, d] and vectors [..., d], got "
            f"{list(tables.shape)} and {list(vectors.shape)}"
        )
