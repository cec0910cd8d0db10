"""Advantages: how much better a token, or a whole answer, was than expected."""

import jax
import jax.numpy as jnp


def discounted_advantages(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float = 1.0,
    decay: float = 0.95,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates of every token, and the returns.

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t = sum_l (gamma lambda)^l delta_{t+l},   R_t = A_t + V_t

    with V = 0 behind the last token. decay 0 gives delta_t, decay 1 the return less the
    value.

    Args:
      rewards: r, f32[B, T].
      values: V, f32[B, T], before each token.
      mask: bool[B, T], the tokens of the answer, which are the first of each row.
      discount: gamma, 0 <= gamma <= 1.
      decay: lambda, 0 <= lambda <= 1.

    Returns:
      (A, R), f32[B, T]; 0 where the mask is False.

    References:
      Schulman et al. 2015, arXiv 1506.02438, equation 16.

    Example:
      >>> rewards, values = jnp.array([[0.0, 1.0]]), jnp.array([[0.25, 0.5]])
      >>> mask = jnp.ones((1, 2), bool)
      >>> advantages, _ = discounted_advantages(rewards, values, mask, decay=1.0)
      >>> advantages.tolist()  # 1 - 0.25, 1 - 0.5
      [[0.75, 0.5]]
    """
    real = mask.astype(jnp.float32)
    rewards, values = rewards * real, values * real
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    surprise = rewards + discount * following - values

    def step(later: jax.Array, now: jax.Array):
        found = now + discount * decay * later
        return found, found

    nothing = jnp.zeros(rewards.shape[:1])
    _, found = jax.lax.scan(step, nothing, surprise.T, reverse=True)
    advantages = jnp.where(mask, found.T, 0.0)
    return advantages, (advantages + values) * real


def whitened(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over the tokens that count.

    Args:
      values: f32[...].
      mask: bool[...], which count.

    Returns:
      f32[...]; 0 where the mask is False, and everywhere if all values are equal.

    References:
      Zheng et al. 2023, arXiv 2307.04964, section 5.3.

    Example:
      >>> whitened(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])).tolist()
      [-1.0, 1.0, 0.0]
    """
    count = jnp.maximum(mask.sum(), 1)
    mean = jnp.sum(values, where=mask) / count
    centred = jnp.where(mask, values - mean, 0.0)
    variance = jnp.sum(centred**2) / count
    # a tiny number would blow rounding errors up where all values are equal
    spread = jnp.where(variance > 1e-12, variance, 1.0)
    return jnp.where(variance > 1e-12, centred * jax.lax.rsqrt(spread), 0.0)


def group_advantages(
    rewards: jax.Array, *, scale: bool = True, epsilon: float = 1e-4
) -> jax.Array:
    """How much better each answer is than the others to the same prompt.

        A_i = (r_i - mean) / (std + epsilon),   or r_i - mean without scale

    The standard deviation has G - 1 in its denominator. Equal rewards give exactly 0.

    Args:
      rewards: f32[B, G], of G answers to each of B prompts.
      scale: whether the standard deviation is divided by; Dr. GRPO leaves it out.
      epsilon: added to the standard deviation.

    Returns:
      f32[B, G], whose sum over a group is 0.

    Raises:
      ValueError: fewer than two answers, which have nothing to be compared with.

    References:
      Shao et al. 2024, arXiv 2402.03300, section 4.1.2; Liu et al. 2025, arXiv
      2503.20783, section 3.1 for no scale.

    Example:
      >>> group_advantages(jnp.array([[0.0, 1.0], [1.0, 1.0]]), scale=False).tolist()
      [[-0.5, 0.5], [0.0, 0.0]]
    """
    if rewards.shape[1] < 2:
        raise ValueError(
            f"expected at least 2 answers a group, got rewards {list(rewards.shape)}"
        )
    equal = equal_rewards(rewards)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    centred = jnp.where(equal[:, None], 0.0, centred)  # a mean may be rounded
    if not scale:
        return centred
    variance = jnp.sum(centred**2, axis=1, keepdims=True) / (rewards.shape[1] - 1)
    return centred / (jnp.sqrt(variance) + epsilon)


def equal_rewards(rewards: jax.Array) -> jax.Array:
    """Whether all answers of a group have one reward: nothing is learned from them.

    Args:
      rewards: f32[B, G].

    Returns:
      bool[B].

    Example:
      >>> equal_rewards(jnp.array([[0.0, 1.0], [1.0, 1.0]])).tolist()
      [False, True]
    """
    return (rewards == rewards[:, :1]).all(axis=1)


def kl_estimate(log_probs: jax.Array, reference: jax.Array, kind: str) -> jax.Array:
    """An estimate of KL(pi || ref) from a token drawn from pi.

        r = ref / pi;   k1: -log r,   k2: (log r)^2 / 2,   k3: r - 1 - log r

    k1 and k3 have the divergence as their mean, and k3 is never negative. The mean of
    k2 is biased, and its gradient is the divergence's.

    Args:
      log_probs: log pi, f32[...].
      reference: log ref, f32[...].
      kind: "k1", "k2" or "k3".

    Returns:
      f32[...], in nats.

    Raises:
      ValueError: another kind.

    References:
      Schulman 2020, Approximating KL divergence, joschu.net/blog/kl-approx.html.

    Example:
      >>> kl_estimate(jnp.array([-1.0]), jnp.array([-2.0]), "k1").tolist()
      [1.0]
    """
    log_ratio = reference - log_probs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return jnp.square(log_ratio) / 2
    if kind == "k3":
        return jnp.expm1(log_ratio) - log_ratio
    raise ValueError(f"expected kind to be 'k1', 'k2' or 'k3', got kind={kind!r}")
