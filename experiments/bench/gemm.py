"""How fast this machine multiplies matrices: what a floor in FLOP is divided by."""

import time

import jax
import jax.numpy as jnp


def flop_per_second(size: int = 2048, repeats: int = 8) -> float:
    """The best f32 rate of all devices together (on CPU, of all cores), each with a
    product of its own.
    """
    matrices = [
        jax.device_put(jnp.ones((size, size)), device) for device in jax.devices()
    ]
    multiply = jax.jit(lambda matrix: matrix @ matrix)
    jax.block_until_ready([multiply(matrix) for matrix in matrices])
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready([multiply(matrix) for matrix in matrices])
        best = min(best, time.perf_counter() - started)
    return len(matrices) * 2 * size**3 / best
