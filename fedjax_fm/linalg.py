"""Factorisations of stacks of matrices, one matrix after the other on CPUs.

LAPACK's batched calls in jaxlib hand the matrices of a stack to the threads that XLA
computes with, and wait for them on one of these. Where as many devices as there are
threads do so at once, as the devices of a mesh do, nobody is left to compute.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.dispatch import on_cpu


def svd(matrix: jax.Array, full_matrices: bool = False) -> tuple[jax.Array, ...]:
    """Matrix = u diag(s) vt.

    Args:
      matrix: [..., m, n].
      full_matrices: as for `jax.numpy.linalg.svd`.

    Returns:
      (u, s, vt).

    Example:
      >>> u, s, vt = svd(jnp.diag(jnp.array([2.0, 1.0])))
      >>> s.tolist()
      [2.0, 1.0]
    """

    def one(x: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.linalg.svd(x, full_matrices=full_matrices))

    return _each(one, matrix)


def singular_values(matrix: jax.Array) -> jax.Array:
    """The singular values, falling, [..., min(m, n)].

    Args:
      matrix: [..., m, n].
    """

    def one(x: jax.Array) -> jax.Array:
        return jnp.linalg.svd(x, compute_uv=False)

    return _each(one, matrix)


def qr(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Matrix = q r, with as many columns of q as the smaller side has.

    Args:
      matrix: [..., m, n].

    Returns:
      (q, r).
    """

    def one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        q, r = jnp.linalg.qr(x)
        return q, r

    return _each(one, matrix)


def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The eigenvalues of symmetric matrices, rising, and their vectors.

    Args:
      matrix: [..., n, n].

    Returns:
      (values [..., n], vectors [..., n, n]).
    """

    def one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, vectors = jnp.linalg.eigh(x)
        return values, vectors

    return _each(one, matrix)


def det(matrix: jax.Array) -> jax.Array:
    """The determinants, [...].

    Args:
      matrix: [..., n, n].
    """
    return _each(jnp.linalg.det, matrix)


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """X with matrix x = right.

    Args:
      matrix: [..., n, n].
      right: [..., n, k].

    Returns:
      [..., n, k].
    """
    return _each(jnp.linalg.solve, matrix, right)


def _each(function: Callable, *stacks: jax.Array) -> Any:
    """The function of every matrix of stacks of one shape [..., m, n].

    Also under `vmap`, whose matrices are a stack, too.
    """
    lifted = jax.custom_batching.sequential_vmap(function) if on_cpu() else function
    for _ in range(stacks[0].ndim - 2):
        lifted = jax.vmap(lifted)
    return lifted(*stacks)
