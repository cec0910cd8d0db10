"""Advantages against closed forms and plain loops, and what holds exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm import preferences

RNG = np.random.default_rng(0)
LENGTHS = np.array([5, 3, 1])
MASK = np.arange(5) < LENGTHS[:, None]
REWARDS = RNG.normal(size=(3, 5)).astype(np.float32)
VALUES = RNG.normal(size=(3, 5)).astype(np.float32)


def estimate(**more):
    found = preferences.discounted_advantages(
        jnp.asarray(REWARDS), jnp.asarray(VALUES), jnp.asarray(MASK), **more
    )
    return [np.asarray(x) for x in found]


def by_double_loop(gamma, lam):
    """The sum over all later surprises, written out."""
    found = np.zeros((3, 5))
    for row, length in enumerate(LENGTHS):
        r, v = REWARDS[row, :length], np.append(VALUES[row, :length], 0.0)
        for t in range(length):
            for later in range(t, length):
                surprise = r[later] + gamma * v[later + 1] - v[later]
                found[row, t] += (gamma * lam) ** (later - t) * surprise
    return found


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0)])
def test_advantages_equal_the_double_loop(gamma, lam):
    advantages, returns = estimate(discount=gamma, decay=lam)
    expected = by_double_loop(gamma, lam)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, (expected + VALUES) * MASK, atol=1e-5)


def test_decay_zero_is_the_surprise_alone():
    advantages, _ = estimate(decay=0.0)
    following = np.zeros((3, 5))
    following[:, :-1] = (VALUES * MASK)[:, 1:]
    expected = (REWARDS + following - VALUES) * MASK
    np.testing.assert_allclose(advantages, expected, atol=1e-6)


def test_decay_one_is_the_return_less_the_value():
    advantages, returns = estimate(decay=1.0)
    rest = np.cumsum((REWARDS * MASK)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(advantages, (rest - VALUES) * MASK, atol=1e-5)
    np.testing.assert_allclose(returns, rest * MASK, atol=1e-5)


def test_what_lies_behind_the_end_does_not_count():
    poisoned = np.where(MASK, REWARDS, 1e6), np.where(MASK, VALUES, -1e6)
    found = preferences.discounted_advantages(*poisoned, MASK)[0]
    np.testing.assert_array_equal(np.asarray(found), estimate()[0])


def test_whitened_over_the_tokens_that_count():
    found = np.asarray(preferences.whitened(jnp.asarray(REWARDS), jnp.asarray(MASK)))
    np.testing.assert_allclose(found[MASK].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(found[MASK].var(), 1, atol=1e-5)
    assert (found[~MASK] == 0).all()


@pytest.mark.parametrize("mask", [np.ones((2, 3), bool), np.zeros((2, 3), bool)])
def test_equal_values_are_whitened_to_zero_with_a_gradient_of_zero(mask):
    def total(x):
        return preferences.whitened(x, mask).sum()

    same = jnp.full((2, 3), 0.1)
    assert not np.asarray(preferences.whitened(same, mask)).any()
    assert not np.asarray(jax.grad(total)(same)).any()


@pytest.mark.parametrize("scale", [True, False])
def test_a_groups_advantages_sum_to_zero(scale):
    rewards = jnp.asarray(RNG.normal(size=(6, 8)).astype(np.float32))
    found = np.asarray(preferences.group_advantages(rewards, scale=scale))
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-5)
    deviation = np.asarray(rewards).std(axis=1, ddof=1, keepdims=True)
    centred = rewards - np.asarray(rewards).mean(axis=1, keepdims=True)
    expected = centred / (deviation + 1e-4) if scale else centred
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_rewards_give_exactly_nothing():
    """0.1 seven times has a rounded mean: the difference must not be blown up."""
    rewards = jnp.full((2, 7), 0.1)
    assert not np.asarray(preferences.group_advantages(rewards)).any()


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 answers a group, got .*\[3, 1\]"):
        preferences.group_advantages(jnp.ones((3, 1)))


def test_an_affine_change_of_rewards_changes_nothing():
    rewards = jnp.asarray(RNG.normal(size=(4, 8)).astype(np.float32))
    plain = preferences.group_advantages(rewards, epsilon=0.0)
    other = preferences.group_advantages(3 * rewards + 5, epsilon=0.0)
    np.testing.assert_allclose(plain, other, atol=1e-4)


def test_estimates_of_the_divergence():
    """k1 and k3 have its value as their mean over tokens drawn from pi."""
    logits, other = jnp.asarray(RNG.normal(size=(2, 6)))
    pi, ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    exact = float(jnp.sum(jnp.exp(pi) * (pi - ref)))
    for kind in ("k1", "k3"):
        each = preferences.kl_estimate(pi, ref, kind)
        np.testing.assert_allclose(jnp.sum(jnp.exp(pi) * each), exact, atol=1e-5)
    assert (preferences.kl_estimate(pi, ref, "k3") >= 0).all()
    ratio = np.exp(np.asarray(ref - pi))
    k2 = preferences.kl_estimate(pi, ref, "k2")
    np.testing.assert_allclose(k2, np.log(ratio) ** 2 / 2, rtol=1e-5)
    for kind in ("k1", "k2", "k3"):
        assert not preferences.kl_estimate(pi, pi, kind).any()
    with pytest.raises(ValueError, match="'k1', 'k2' or 'k3', got kind='k4'"):
        preferences.kl_estimate(pi, ref, "k4")


def test_clips_against_plain_loops():
    log_probs, old, advantages = (RNG.normal(size=(3, 4)) * 0.5 for _ in range(3))
    found = preferences.clipped_policy(log_probs, old, advantages, 0.2)
    for row in range(3):
        for t in range(4):
            ratio = np.exp(log_probs[row, t] - old[row, t])
            bounded = min(max(ratio, 0.8), 1.2)
            a = advantages[row, t]
            expected = -min(ratio * a, bounded * a)
            np.testing.assert_allclose(found.losses[row, t], expected, rtol=1e-4)
            assert bool(found.clipped[row, t]) == (bounded * a < ratio * a)
    values, before, returns = log_probs, old, advantages
    errors = preferences.clipped_value(values, before, returns, 0.2)
    near = np.maximum(np.minimum(values, before + 0.2), before - 0.2)
    expected = np.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
    np.testing.assert_allclose(errors, expected, rtol=1e-4)
