"""Which of the teacher's layers each of the student's learns from.

A map is f32[student layers, teacher layers], the weight of each pair, of sum one. Its
sum with the distances of all pairs is what is minimised.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from optax.assignment import hungarian_algorithm

from fedjax_fm import checks

# `costs f32[student layers, teacher layers] -> weights` of the same shape
LayerMap = Callable[[jax.Array], jax.Array]

_MOST = 96  # layers of the least common multiple, whose cube is the work


def skip(costs: jax.Array) -> jax.Array:
    """Student layer i of m learns from teacher layer ceil((i + 1) n / m) of n.

    Args:
      costs: f32[m, n], of which the shape is read.

    Returns:
      f32[m, n], 1 / m at each pair.

    Raises:
      ValueError: a student of more layers than its teacher.

    References:
      Sun et al. 2019, arXiv 1908.09355 (PKD-Skip); He et al. 2021, arXiv 2109.11105.

    Example:
      >>> skip(jnp.zeros((2, 4))).tolist()
      [[0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]]
    """
    m, n = _layers(costs)
    return _pairs(m, n, [-(-(i + 1) * n // m) - 1 for i in range(m)])


def last(costs: jax.Array) -> jax.Array:
    """The student's m layers learn from the teacher's last m, in their order.

    Args:
      costs: f32[m, n], of which the shape is read.

    Returns:
      f32[m, n], 1 / m at each pair.

    Raises:
      ValueError: a student of more layers than its teacher.

    References:
      Sun et al. 2019, arXiv 1908.09355 (PKD-Last); He et al. 2021, arXiv 2109.11105.

    Example:
      >>> last(jnp.zeros((2, 4))).tolist()
      [[0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.5]]
    """
    m, n = _layers(costs)
    return _pairs(m, n, [n - m + i for i in range(m)])


def earth_mover(costs: jax.Array) -> jax.Array:
    """The flow of least cost between the layers of both, all of equal weight.

        min_F sum_ij F_ij D_ij,  sum_j F_ij = 1 / m,  sum_i F_ij = 1 / n,  F >= 0

    Solved exactly, as an assignment of lcm(m, n) parts of layers.

    Args:
      costs: D, f32[m, n].

    Returns:
      F, f32[m, n]; no gradient goes through it.

    Raises:
      ValueError: a least common multiple above 96.

    References:
      Li et al. 2020, BERT-EMD, arXiv 2010.06133; He et al. 2021, arXiv 2109.11105.

    Example:
      >>> earth_mover(jnp.array([[0.0, 1.0, 9.0], [9.0, 1.0, 0.0]])).round(3).tolist()
      [[0.333..., 0.167..., 0.0], [0.0, 0.167..., 0.333...]]
    """
    m, n = costs.shape
    parts = math.lcm(m, n)
    if parts > _MOST:
        raise ValueError(
            f"{m} and {n} layers have {parts} as their least common multiple, expected "
            f"{_MOST} at most; take the map skip or last"
        )
    costs = jax.lax.stop_gradient(costs)
    of_row, of_column = np.arange(parts) * m // parts, np.arange(parts) * n // parts
    rows, columns = hungarian_algorithm(costs[of_row][:, of_column])
    pairs = jnp.zeros((m, n)).at[jnp.array(of_row)[rows], jnp.array(of_column)[columns]]
    return pairs.add(1 / parts)


def checked_map(name: str, value: object) -> LayerMap:
    """`value`, if it is a function.

    Args:
      name: what the caller calls it, for the message.
      value: what should be one.

    Raises:
      TypeError: it is none.
    """
    if not callable(value):
        raise TypeError(
            f"expected {name} to be a layer map such as tasks.skip, got "
            f"{checks.shown(value)}"
        )
    return value  # type: ignore[return-value]


def _layers(costs: jax.Array) -> tuple[int, int]:
    """(m, n), if m is at most n."""
    m, n = costs.shape
    if m > n:
        raise ValueError(
            f"a student of {m} layers has more than its teacher, of {n}; take the map "
            "earth_mover"
        )
    return m, n


def _pairs(m: int, n: int, teachers: list[int]) -> jax.Array:
    """One teacher layer for each of the student's."""
    weights = np.zeros((m, n), np.float32)
    weights[np.arange(m), teachers] = 1 / m
    return jnp.asarray(weights)
