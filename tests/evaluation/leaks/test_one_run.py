"""The empirical epsilon: below the truth for a right mechanism, above it for a broken one."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fedjax_fm as ffm
from fedjax_fm import privacy
from fedjax_fm.evaluation.leaks import epsilon_of_guesses, one_run_epsilon, p_value
from fedjax_fm.population import samplers


@pytest.mark.parametrize("n", [5, 20, 100])
def test_all_guesses_right_give_the_closed_form(n):
    """Without delta: (e^eps / (1 + e^eps))^n = 5 %."""
    q = 0.05 ** (1 / n)
    assert epsilon_of_guesses(n, n, n) == pytest.approx(np.log(q / (1 - q)), abs=1e-6)


def test_the_p_value_is_the_papers_loop():
    """The code of the paper's appendix D, by its own names."""

    def theirs(m, r, v, eps, delta):
        q = 1 / (1 + np.exp(-eps))
        beta = stats.binom.sf(v - 1, r, q)
        alpha, total = 0.0, 0.0
        for i in range(1, v + 1):
            total += stats.binom.pmf(v - i, r, q)
            if total > i * alpha:
                alpha = total / i
        return min(beta + alpha * delta * 2 * m, 1.0)

    for v, r, m, eps, delta in [
        (30, 40, 100, 0.5, 1e-5), (40, 40, 40, 2.0, 1e-3), (20, 40, 60, 1.0, 1e-2),
        (0, 5, 5, 1.0, 1e-3),
    ]:  # fmt: skip
        assert p_value(v, r, m, eps, delta) == pytest.approx(
            theirs(m, r, v, eps, delta)
        )


def test_randomised_response_is_the_worst_case():
    """It guesses right with probability e^eps / (1 + e^eps): the bound nearly reaches eps."""
    epsilon, n = 1.0, 4000
    right = 1 / (1 + np.exp(-epsilon))
    n_correct = int(stats.binom.ppf(0.5, n, right))
    assert 0.9 < epsilon_of_guesses(n_correct, n, n) < epsilon


def test_a_delta_makes_the_bound_smaller():
    plain = epsilon_of_guesses(60, 64, 64)
    assert 0 < epsilon_of_guesses(60, 64, 64, delta=1e-4) < plain


def test_coins_alone_refute_nothing():
    random = np.random.default_rng(0)
    false = 0
    for _ in range(300):
        coins = random.random(60) < 0.5
        false += one_run_epsilon(random.normal(size=60), coins).epsilon > 0
    assert false / 300 <= 0.05


N, ROUNDS, DELTA, EPSILON = 256, 4, 1e-5, 2.0


def scores_of_sums(multiplier, seed):
    """Canaries are orthogonal vectors of norm 1, the clip; all take part in each round.

    What is released is the sum of those that are in, with noise, in each round; a
    canary's score is its inner product with all of it.
    """
    random = np.random.default_rng(seed)
    coins = random.random(N) < 0.5
    released = coins + multiplier * random.normal(size=(ROUNDS, N))
    return released.sum(axis=0), coins


@pytest.fixture(scope="module")
def multiplier():
    sampler = samplers.spaced(N, N, min_separation=1, max_participations=ROUNDS)
    how = {"rounds": ROUNDS, "delta": DELTA}
    return float(
        privacy.multiplier_for(EPSILON, sampler, noise=privacy.independent(), **how)
    )


def test_the_bound_stays_below_the_accountants(multiplier):
    above = 0
    for seed in range(60):
        found = one_run_epsilon(*scores_of_sums(multiplier, seed), delta=DELTA)
        above += found.epsilon > EPSILON
    assert above / 60 <= 0.05


def test_noise_that_was_forgotten_is_found():
    found = one_run_epsilon(*scores_of_sums(0.0, 0), delta=DELTA)
    assert found.n_correct == found.n_guesses
    assert found.epsilon == found.ceiling > EPSILON


def test_noise_of_one_round_counted_as_all_is_found(multiplier):
    """A mechanism that adds a tenth of the noise that it was accounted for."""
    found = one_run_epsilon(*scores_of_sums(multiplier / 10, 0), delta=DELTA)
    assert found.epsilon > EPSILON


# The method itself, in the engine: canary clients with directions of their own


def delta_of(coins, noise_multiplier):
    """The final model of DP-FedAvg; client k pulls along axis k if its coin says so."""

    def loss(w, backbone, batch, key):
        return -100.0 * jnp.sum(batch["x"] * w, axis=-1), {}

    sampler = samplers.spaced(N, N, min_separation=1, max_participations=ROUNDS)
    method = ffm.algorithms.dp_fedavg(
        ffm.Task(loss),
        optax.sgd(1.0),
        noise=privacy.independent(),
        noise_multiplier=noise_multiplier,
        clip_norm=1.0,
        local_steps=1,
        batch_size=1,
    )
    axes = np.eye(N, dtype=np.float32) * coins[:, None]
    population = ffm.Population.from_clients([{"x": axis[None]} for axis in axes])
    simulator = ffm.Simulator(
        method, population, cohort_size=N, sampler=sampler, seed=3
    )
    state, _ = simulator.run(simulator.init(jnp.zeros(N)), ROUNDS)
    return np.asarray(state.delta)


def test_dp_fedavg_keeps_its_promise_and_without_noise_it_does_not(multiplier):
    coins = np.random.default_rng(3).random(N) < 0.5
    kept = one_run_epsilon(delta_of(coins, multiplier), coins, delta=DELTA)
    assert kept.epsilon <= EPSILON
    assert kept.n_correct < kept.n_guesses
    broken = one_run_epsilon(delta_of(coins, 0.0), coins, delta=DELTA)
    assert broken.epsilon == broken.ceiling > EPSILON


def test_two_canaries_refute_nothing():
    found = one_run_epsilon([1.0, 0.0], [True, False])
    assert (found.n_correct, found.n_guesses, found.epsilon) == (2, 2, 0.0)


def test_what_is_no_coin_is_refused():
    with pytest.raises(ValueError, match=r"shapes \[2\] and \[3\]"):
        one_run_epsilon([1.0, 2.0], [True, False, True])
    with pytest.raises(ValueError, match=r"two canaries or more, got shapes \[1\]"):
        one_run_epsilon([1.0], [True])
    with pytest.raises(ValueError, match="coins of int64"):
        one_run_epsilon([1.0, 2.0], [1, 0])
    with pytest.raises(ValueError, match="n_correct=9"):
        p_value(9, 8, 8, 1.0)
    with pytest.raises(ValueError, match="level=0"):
        epsilon_of_guesses(8, 8, 8, level=0)
