"""The clipped objectives of PPO, token by token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Clipped(NamedTuple):
    """Losses of tokens, and where they were clipped.

    Attributes:
      losses: f32[R, T].
      clipped: bool[R, T], where the clip decided and the gradient is 0.
      log_ratio: f32[R, T], log pi/old.
    """

    losses: jax.Array
    clipped: jax.Array
    log_ratio: jax.Array


def clipped_policy(
    log_probs: jax.Array, old: jax.Array, advantages: jax.Array, clip: float
) -> Clipped:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = pi / old.

    Args:
      log_probs: log pi, f32[R, T].
      old: log-probabilities under the policy that wrote the answers, f32[R, T].
      advantages: A, f32[R, T], or [R, 1] where all tokens of a row have one.
      clip: eps, above 0.

    Returns:
      `Clipped`.

    References:
      Schulman et al. 2017, arXiv 1707.06347, equation 7.

    Example:
      >>> old = jnp.zeros((1, 2))
      >>> log_probs = jnp.log(jnp.array([[1.5, 0.5]]))
      >>> found = clipped_policy(log_probs, old, jnp.array([[1.0, 1.0]]), 0.2)
      >>> [round(float(x), 4) for x in found.losses[0]], found.clipped.tolist()
      ([-1.2, -0.5], [[True, False]])
    """
    log_ratio = log_probs - old
    ratio = jnp.exp(log_ratio)
    plain = ratio * advantages
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip) * advantages
    return Clipped(
        losses=-jnp.minimum(plain, bounded),
        clipped=bounded < plain,
        log_ratio=log_ratio,
    )


def clipped_value(
    values: jax.Array, old: jax.Array, returns: jax.Array, clip: float
) -> jax.Array:
    """max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) / 2.

    Args:
      values: V, f32[R, T].
      old: V_old, when the answers were written, f32[R, T].
      returns: R, f32[R, T].
      clip: eps, above 0.

    Returns:
      f32[R, T].

    References:
      Zheng et al. 2023, arXiv 2307.04964, section 5.3; Schulman et al. 2017, arXiv
      1707.06347, for the error without a clip.

    Example:
      >>> clipped_value(jnp.array([1.0]), jnp.array([0.0]), jnp.array([1.0]), 0.5)
      Array([0.125], dtype=float32)
    """
    bounded = old + jnp.clip(values - old, -clip, clip)
    error = jnp.square(values - returns)
    return jnp.maximum(error, jnp.square(bounded - returns)) / 2
