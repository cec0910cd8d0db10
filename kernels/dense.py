"""A dense layer's product whose gradient XLA's CPU backend multiplies faster."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`: [..., in], [in, out] -> [..., out].

    The kernel's gradient x^T g is the product of a transposed and a plain matrix. XLA folds the transposition into the product,
    which its CPU backend then runs a quarter slower than a transposition and a product of plain matrices (784 x 20 by 20 x
    128, weights updated in place: 33 and 26 us), so on CPU the two are kept apart. Reverse mode only; elsewhere write `@`.

    >>> x, w = jnp.ones((2, 3)), jnp.ones((3, 4))
    >>> bool((jax.grad(lambda w: dense(x, w).sum())(w) == 2).all())
    True
    """
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array):
    return x @ kernel, (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows = x.reshape(-1, x.shape[-1]).T
    if jax.default_backend() == "cpu":
        rows = jax.lax.optimization_barrier(rows)
    gradient = rows @ g.reshape(-1, g.shape[-1])
    return jnp.matmul(g, kernel.T).astype(x.dtype), gradient.astype(kernel.dtype)


dense.defvjp(_forward, _backward)
