"""A dense layer's product whose gradient XLA's CPU backend multiplies faster."""

import jax

from fedjax_fm.kernels.dispatch import on_cpu


@jax.custom_jvp
def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` with a gradient that is fast on CPU.

    Can be differentiated in both modes.

    The kernel's gradient x^T g is the product of a transposed and a plain matrix. XLA
    folds the transposition into the product, which its CPU backend then runs a quarter
    slower than a transposition and a product of plain matrices (784 x 20 by 20 x 128,
    weights updated in place: 33 and 26 us), and over [batch, time, in] it transposes
    the larger factor first. So x is read as rows, and on CPU its transposition is kept
    apart.

    Args:
      x: f[..., in].
      kernel: f[in, out].

    Returns:
      f[..., out].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x, w = jnp.ones((2, 3)), jnp.ones((3, 4))
      >>> bool((jax.grad(lambda w: dense(x, w).sum())(w) == 2).all())
      True
    """
    rows = x.reshape(-1, x.shape[-1])
    return (rows @ kernel).reshape(*x.shape[:-1], -1)


def _tangent(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """The derivative of `dense`."""
    x, kernel = primals
    x_dot, kernel_dot = tangents
    columns = x.reshape(-1, x.shape[-1]).T
    if on_cpu():
        columns = jax.lax.optimization_barrier(columns)
    out = dense(x, kernel)
    # Linear in kernel_dot; its transpose, the gradient, is columns @ g.
    return out, (columns.T @ kernel_dot).reshape(out.shape) + dense(x_dot, kernel)


dense.defjvp(_tangent)
