"""How fast this machine multiplies matrices, to turn FLOP into seconds."""

import time

import jax
import jax.numpy as jnp


def flop_per_second(size: int = 2048, repeats: int = 8) -> float:
    """The best f32 rate of all devices together, each with a product of its own.

    Args:
      size: of the square matrices.
      repeats: products, of which the fastest counts.
    """
    ones = jnp.ones((size, size))
    matrices = [jax.device_put(ones, device) for device in jax.devices()]
    multiply = jax.jit(lambda matrix: matrix @ matrix)
    jax.block_until_ready([multiply(matrix) for matrix in matrices])
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready([multiply(matrix) for matrix in matrices])
        seconds = time.perf_counter() - started
        best = min(best, seconds)
    return len(matrices) * 2 * size**3 / best
