"""An adaptive clip releases a noisy count beside the update: what both are worth
together, on neighbouring cohorts.
"""

import dp_accounting as dp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dp_accounting import rdp
from mlp_problem import mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.dp_fedavg import AdaptiveClip, dp_fedavg, update_noise
from fedjax_fm.population import samplers
from fedjax_fm.privacy import independent, spent
from fedjax_fm.types import Aggregate, Setting

NORM, DIM, COHORT = 0.5, 6, 20
SETTING = Setting(1000, COHORT)


def method(z=1.0, count_noise=1.0, quantile=0.5, rate=0.2):
    return dp_fedavg(
        ffm.Task(mlp_loss),
        optax.sgd(0.1),
        noise=independent(),
        noise_multiplier=z,
        clip_norm=NORM,
        adaptive=AdaptiveClip(quantile, rate, count_noise),
        local_steps=1,
        batch_size=4,
    )


def state_of(algorithm, seed=0):
    return algorithm.init({"w": jnp.zeros(DIM)}, jax.random.key(seed), SETTING)


def unnoised(algorithm, state, cohort):
    """(mean f64[DIM], share) of a cohort of updates, as the server gets them."""
    (exchange,) = algorithm.exchanges
    lifted = [
        exchange.reduce.lift(state, {"w": jnp.asarray(x, jnp.float32)}, jnp.float32(1))
        for x in cohort
    ]
    found = exchange.reduce.finish(
        jax.tree.map(lambda *leaves: sum(leaves), *lifted), SETTING
    )
    return np.asarray(found.mean["w"], np.float64), float(found.within), found


def update_sd(algorithm, state):
    """Standard deviation of the noise on an entry of the mean, from what the server adds."""
    (exchange,) = algorithm.exchanges
    _, _, found = unnoised(algorithm, state, [np.zeros(DIM)])
    after, _ = exchange.server(state, Aggregate(found, jnp.int32(1)), jax.random.key(9))
    increment, _ = independent().draw(state.noise)
    return float(
        np.abs(np.asarray(after.delta["w"]) / np.asarray(increment["w"])).mean()
    )


def clients(count=40):
    """Updates of all lengths, some of exactly the clip norm."""
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(count, DIM))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = np.concatenate(
        [
            rng.uniform(0, 2 * NORM, count - 4),
            [0.0, NORM * 0.999999, NORM * 1.001, 50.0],
        ]
    )
    return directions * lengths[:, None]


def whitened(one, other, mean_sd, share_sd):
    """Distance of two (mean, share) in units of the noise."""
    return float(
        np.hypot(
            np.linalg.norm(one[0] - other[0]) / mean_sd, (one[1] - other[1]) / share_sd
        )
    )


@pytest.mark.parametrize(
    ("z", "count_noise"), [(1.0, 1.0), (1.0, 0.6), (0.3, 5.0), (4.0, 2.5)]
)
def test_one_client_more_moves_mean_and_share_by_one_over_z_at_most(z, count_noise):
    algorithm = method(z, count_noise)
    state, cohort = state_of(algorithm), clients()[:7]
    sds = update_sd(algorithm, state), count_noise / COHORT
    before = unnoised(algorithm, state, cohort)
    moved = [
        whitened(unnoised(algorithm, state, [*cohort, x]), before, *sds)
        for x in clients()
    ]
    assert max(moved) <= (1 + 1e-4) / z
    assert max(moved) >= (1 - 1e-4) / z  # tight: no more noise than the promise needs


@pytest.mark.parametrize(("z", "count_noise"), [(1.0, 1.0), (0.3, 5.0)])
def test_one_client_replaced_moves_them_by_twice_that(z, count_noise):
    """The update moves by up to 2 S and the count by up to 1: halving the multiplier is
    right for both.
    """
    algorithm = method(z, count_noise)
    state, rest = state_of(algorithm), list(clients()[:6])
    sds = update_sd(algorithm, state), count_noise / COHORT
    opposite = [-NORM * 0.999999 * np.eye(DIM)[0], NORM * 1.00001 * np.eye(DIM)[0]]
    found = [unnoised(algorithm, state, [*rest, x]) for x in [*clients(20), *opposite]]
    moved = [whitened(a, b, *sds) for a in found for b in found]
    assert max(moved) <= 2 * (1 + 1e-4) / z
    assert max(moved) >= 2 * (1 - 1e-4) / z


def test_the_epsilon_that_is_reported_is_that_of_both_releases():
    """Composed by hand from what the code adds and what a client moves: q = 0.02, 20
    clients, 200 rounds, z = 1.
    """
    algorithm = method(z=1.0, count_noise=None)
    state = state_of(algorithm)
    empty = unnoised(algorithm, state, [np.zeros(DIM)] * 3)
    moves = [
        abs(unnoised(algorithm, state, [np.zeros(DIM)] * 3 + [x])[1] - empty[1])
        for x in clients()
    ]
    count = dp.GaussianDpEvent(
        1.0 / (max(moves) * COHORT)
    )  # noise of one client, a twentieth of the cohort
    update = dp.GaussianDpEvent(update_sd(algorithm, state) * COHORT / NORM)
    both = dp.PoissonSampledDpEvent(0.02, dp.ComposedDpEvent([update, count]))
    accountant = rdp.RdpAccountant().compose(dp.SelfComposedDpEvent(both, 200))
    found = spent(samplers.poisson(1000, 0.02), independent(), 1.0, 200, 1e-5).epsilon
    assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert found == pytest.approx(2.23, abs=0.005)


@pytest.mark.parametrize("came", [0, 4, COHORT])
def test_the_share_is_centred_on_those_who_did_not_come(came):
    """(sum (b - 1/2)) / m + 1/2: the share of the planned cohort, a half for each who
    did not come.
    """
    algorithm = method()
    cohort = [np.zeros(DIM)] * came
    if came:
        _, share, _ = unnoised(algorithm, state_of(algorithm), cohort)
        assert share == pytest.approx((came + (COHORT - came) / 2) / COHORT)
        return
    population = ffm.Population.from_clients(
        [{"x": np.ones((2, 3), np.float32), "y": np.ones(2, np.float32)}] * 4
    )
    nobody = samplers.fixed([0])._replace(
        draw=lambda state, key: (jnp.zeros(1, jnp.int32), jnp.int32(0), state)
    )
    quiet = method(z=0.0, count_noise=1e-6)
    one = ffm.Simulator(
        quiet,
        population,
        backbone={"w": jnp.zeros((3, 4))},
        cohort_size=1,
        sampler=nobody,
        devices=1,
    )
    _, metrics = one.run(one.init({"w": jnp.zeros((3, 4)), "v": jnp.zeros(4)}), 1)
    assert metrics["within_clip"][0] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("count_noise", [0.7, 3.0])
def test_a_released_share_carries_the_noise_it_says(count_noise):
    """Over 4000 seeds the metric has the stated standard deviation, and the next norm
    is made of it.
    """
    algorithm, n = method(count_noise=count_noise, rate=0.2), 4000
    (exchange,) = algorithm.exchanges
    _, exact, found = unnoised(algorithm, state_of(algorithm), clients()[:COHORT])

    def release(key):
        state = algorithm.init({"w": jnp.zeros(DIM)}, key, SETTING)
        after, metrics = exchange.server(
            state, Aggregate(found, jnp.int32(COHORT)), key
        )
        return metrics["within_clip"], after.clip_norm, after.delta["w"][0]

    share, norm, entry = jax.jit(jax.vmap(release))(
        jax.random.split(jax.random.key(1), n)
    )
    noise = np.asarray(share, np.float64) - exact
    sd = count_noise / COHORT
    assert abs(noise.mean()) < 5 * sd / np.sqrt(n)
    assert np.var(noise) / sd**2 == pytest.approx(1, abs=5 * np.sqrt(2 / n))
    np.testing.assert_allclose(
        norm, NORM * np.exp(-0.2 * (np.asarray(share) - 0.5)), rtol=1e-5
    )
    assert abs(np.corrcoef(noise, np.asarray(entry))[0, 1]) < 5 / np.sqrt(
        n
    )  # other noise than the update's


def test_the_noise_of_a_share_is_new_each_round():
    algorithm = method()
    (exchange,) = algorithm.exchanges
    state = state_of(algorithm)
    _, _, found = unnoised(algorithm, state, clients()[:5])

    def step(state, _):
        after, metrics = exchange.server(
            state, Aggregate(found, jnp.int32(5)), jax.random.key(0)
        )
        return after, metrics["within_clip"] - found.within

    _, noise = jax.lax.scan(step, state, length=3000)
    noise = np.asarray(noise, np.float64) * COHORT
    assert np.var(noise) == pytest.approx(1, abs=5 * np.sqrt(2 / 3000))
    assert len(np.unique(noise)) > 2900
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 5 / np.sqrt(3000)


def test_a_count_without_noise_is_never_released():
    with pytest.raises(ValueError, match=r"count_noise=0"):
        method(z=1.0, count_noise=0.0)
    with pytest.raises(ValueError, match=r"count_noise=0.4.*count_noise > 0.5"):
        method(z=1.0, count_noise=0.4)
    with pytest.raises(ValueError, match=r"count_noise > 1"):
        update_noise(2.0, 0.0)
    method(z=0.0, count_noise=0.0)  # nothing is private here, and nothing says so


def test_the_default_noise_of_a_small_cohort_is_refused_before_a_round():
    """A twentieth of 8 clients is less than z / 2 = 0.5: said by `init`, with the cohort."""
    algorithm = method(z=1.0, count_noise=None)
    with pytest.raises(ValueError, match=r"count_noise > 0.5.*cohort_size=8"):
        algorithm.init({"w": jnp.zeros(DIM)}, jax.random.key(0), Setting(1000, 8))
