"""How sparse a model is when, and how much is pruned at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks

Schedule = Callable[[Any], jax.Array]


def cubic(
    final_sparsity: float,
    *,
    first: int,
    last: int,
    every: int = 1,
    initial_sparsity: float = 0.0,
) -> Schedule:
    """The sparsity of gradual pruning, which grows fast at first and slowly at the end.

        s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3,  t = t_0, t_0 + dt, ...

    It stays between these times, is s_i before t_0 and s_f from t_0 + n dt on, where
    its slope is zero.

    Args:
      final_sparsity: s_f, share of zeros at the end, s_i <= s_f < 1.
      first: t_0, the first time at which is pruned, from 0; rounds, say.
      last: t_0 + n dt, the last one, at least `first + every`.
      every: dt, time between prunings.
      initial_sparsity: s_i, 0 <= s_i < 1.

    Returns:
      `time i32[] -> f32[]`, the share of zeros.

    Raises:
      TypeError, ValueError: a share out of its bounds; a schedule that ends before it
        starts, or whose length is no multiple of `every`.

    References:
      Zhu and Gupta 2017, arXiv 1710.01878, equation (1).

    Example:
      >>> schedule = cubic(0.8, first=2, last=6, every=2)
      >>> [round(float(schedule(t)), 3) for t in range(8)]
      [0.0, 0.0, 0.0, 0.0, 0.7, 0.7, 0.8, 0.8]
    """
    checks.real("initial_sparsity", initial_sparsity, least=0, below=1)
    checks.real("final_sparsity", final_sparsity, least=initial_sparsity, below=1)
    checks.whole("first", first, least=0)
    checks.whole("every", every, least=1)
    checks.whole("last", last)
    if last <= first:
        raise ValueError(
            f"a schedule from first={first} to last={last} ends before it starts; "
            "expected last > first"
        )
    if (last - first) % every:
        raise ValueError(
            f"expected last - first to be a multiple of every={every}, got "
            f"first={first} and last={last}"
        )
    n_times = (last - first) // every

    def sparsity(time):
        passed = (jnp.asarray(time) - first) // every
        left = 1 - jnp.clip(passed, 0, n_times) / n_times
        reached = final_sparsity + (initial_sparsity - final_sparsity) * left**3
        return jnp.float32(reached)

    return sparsity


def cosine_share(share: float, last: int) -> Schedule:
    """The share of a layer that is exchanged, which falls to zero: FedTiny's.

        share (1 + cos(pi t / last)),  0 from `last` on

    Args:
      share: half of the first one, 0 < share <= 0.5; 0.15 in the paper.
      last: time at which nothing is exchanged any more, at least 1.

    Returns:
      `time i32[] -> f32[]`.

    Raises:
      TypeError, ValueError: an argument out of its bounds.

    References:
      Huang et al. 2022, arXiv 2212.01977; Evci et al. 2020, arXiv
      1911.11134.

    Example:
      >>> schedule = cosine_share(0.15, 10)
      >>> round(float(schedule(0)), 3), round(float(schedule(5)), 3), float(schedule(10))
      (0.3, 0.15, 0.0)
    """
    checks.real("share", share, above=0, most=0.5)
    checks.whole("last", last, least=1)

    def of_time(time):
        passed = jnp.asarray(time) / last
        exchanged = share * (1 + jnp.cos(jnp.pi * passed))
        return jnp.where(passed < 1, exchanged, 0.0)

    return of_time
