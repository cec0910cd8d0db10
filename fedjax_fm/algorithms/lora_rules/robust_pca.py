"""Robust principal component analysis: a matrix as a low-rank and a sparse part.

Candes, Li, Ma, Wright, 2011, "Robust Principal Component Analysis?", J. ACM 58(3),
arXiv 0912.3599, algorithm 1 (alternating directions):

    min |L|_* + lambda |S|_1   with L + S = D
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import linalg


class _Iterate(NamedTuple):
    """Of the alternating directions; matrices are [n, m]."""

    low_rank: jax.Array
    sparse: jax.Array
    dual: jax.Array
    steps: jax.Array  # i32[]
    error: jax.Array  # f32[], |D - L - S| / |D|


def robust_pca(
    matrix: jax.Array,
    n_columns: jax.Array,
    *,
    sparsity: float | None = None,
    tolerance: float = 1e-6,
    most_steps: int = 500,
) -> tuple[jax.Array, jax.Array]:
    """The low-rank and the sparse part of a matrix.

    Singular values come from the m x m Gram matrix, as columns are few. Both parts
    follow the matrix's scale. Columns of zeros change nothing.

    Args:
      matrix: D, f32[n, m].
      n_columns: f32[], how many columns are not padding.
      sparsity: lambda > 0; None: 1 / sqrt(max(n, n_columns)).
      tolerance: of |D - L - S| / |D|.
      most_steps: after which it stops anyway.

    Returns:
      (L, S), f32[n, m]; L + S = D up to rounding, what the iterations left open being
      in S.
    """
    scale = jnp.max(jnp.abs(matrix))
    scale = jnp.where(scale > 0, scale, 1.0)
    data = matrix / scale
    largest_side = jnp.maximum(data.shape[0], n_columns)
    weight = 1 / jnp.sqrt(largest_side) if sparsity is None else sparsity
    mass = jnp.sum(jnp.abs(data))
    size = jnp.linalg.norm(data)
    # The step of the paper, n m / (4 |D|_1).
    mu = data.shape[0] * n_columns / (4 * jnp.where(mass > 0, mass, 1.0))

    def goes_on(at: _Iterate) -> jax.Array:
        return (at.steps < most_steps) & (at.error > tolerance)

    def step(at: _Iterate) -> _Iterate:
        low_rank = _shrunk_values(data - at.sparse + at.dual / mu, 1 / mu)
        sparse = _shrunk(data - low_rank + at.dual / mu, weight / mu)
        left = data - low_rank - sparse
        return _Iterate(
            low_rank=low_rank,
            sparse=sparse,
            dual=at.dual + mu * left,
            steps=at.steps + 1,
            error=jnp.linalg.norm(left) / jnp.where(size > 0, size, 1.0),
        )

    nothing = jnp.zeros_like(data)
    start = _Iterate(
        low_rank=nothing,
        sparse=nothing,
        dual=nothing,
        steps=jnp.int32(0),
        error=jnp.where(size > 0, 1.0, 0.0),
    )
    end = jax.lax.while_loop(goes_on, step, start)
    low_rank = scale * end.low_rank
    return low_rank, matrix - low_rank


def _shrunk(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """Entries moved towards zero by the threshold."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0.0)


def _shrunk_values(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """Singular values moved towards zero by the threshold."""
    squares, right = linalg.eigh(x.T @ x)
    values = jnp.sqrt(jnp.maximum(squares, 0.0))
    kept = jnp.maximum(values - threshold, 0.0)
    share = kept / jnp.where(values > 0, values, 1.0)
    return (x @ right) * share @ right.T
