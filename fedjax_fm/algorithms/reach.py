"""How far an optimizer goes under gradients that are all one: eta ||a||_1 of FedNova."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_fm.types import Tree


def reach_of(
    optimizer: optax.GradientTransformation,
    delta: Tree,
    n_steps: jax.Array | int,
    correct: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """The way that `n_steps` gradients of one make, from zero.

    Where steps are linear in the gradients g_i, as those of SGD with or without momentum
    are, they make up eta sum_i a_i g_i, and this is eta sum_i a_i. SGD: n eta.

    Args:
      optimizer: of optax; it is tried on a tree of single numbers.
      delta: whose structure that tree has.
      n_steps: i32[], may be traced.
      correct: `(gradient, w) -> gradient`, of one number.

    Returns:
      f32[], the mean over the leaves.
    """

    def one_number(x):
        return jnp.zeros((), jnp.float32)

    w = jax.tree.map(one_number, delta)

    def gradient_at(x):
        one = jnp.ones((), x.dtype)
        return one if correct is None else correct(one, x)

    def step(i, carry):
        w, moments = carry
        gradients = jax.tree.map(gradient_at, w)
        updates, moments = optimizer.update(gradients, moments, w)
        return optax.apply_updates(w, updates), moments

    w, _ = jax.lax.fori_loop(0, n_steps, step, (w, optimizer.init(w)))
    return -jnp.mean(jnp.stack(jax.tree.leaves(w)))
