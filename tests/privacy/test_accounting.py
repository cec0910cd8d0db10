"""What is spent equals dp_accounting's own answer, and sampler and accountant must match."""

import itertools

import dp_accounting as dp
import jax
import numpy as np
import pytest
from dp_accounting import pld, rdp

from fedjax_fm.population import samplers
from fedjax_fm.privacy import (
    banded,
    binary_tree,
    independent,
    multiplier_for,
    spent,
    square_root_coefficients,
)

N, DELTA = 1000, 1e-5


def epsilon(event, relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE):
    accountant = rdp.RdpAccountant(neighboring_relation=relation)
    accountant.compose(event)
    return accountant.get_epsilon(DELTA)


def test_poisson_sampling_is_amplified():
    found = spent(samplers.poisson(N, 0.05), independent(), 1.1, 200, DELTA)
    event = dp.SelfComposedDpEvent(
        dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(1.1)), 200
    )
    assert found.epsilon == pytest.approx(epsilon(event), rel=1e-9)
    # The tight accountant confirms that it is an upper bound, and not a loose one.
    tight = pld.PLDAccountant().compose(event).get_epsilon(DELTA)
    assert tight <= found.epsilon < 1.2 * tight
    assert "Poisson" in found.mechanism


def test_a_fixed_cohort_replaces_one_client():
    found = spent(samplers.uniform(N, 50), independent(), 4.0, 100, DELTA)
    event = dp.SampledWithoutReplacementDpEvent(N, 50, dp.GaussianDpEvent(2.0))
    expected = epsilon(
        dp.SelfComposedDpEvent(event, 100), dp.NeighboringRelation.REPLACE_ONE
    )
    assert found.epsilon == pytest.approx(expected, rel=1e-9)
    assert found.relation == "one client's data replaced"


def test_spaced_participation_is_a_gaussian_of_the_whole_run():
    sampler = samplers.spaced(N, 50, min_separation=8, max_participations=3)
    noise = banded(square_root_coefficients(8))
    found = spent(sampler, noise, 5.0, 40, DELTA)
    norm2 = 3 * np.sum(
        square_root_coefficients(8) ** 2
    )  # three columns that do not overlap
    assert found.epsilon == pytest.approx(
        epsilon(dp.GaussianDpEvent(5.0 / np.sqrt(norm2))), rel=1e-9
    )
    # zCDP: rho = sensitivity^2 / (2 sigma^2), eps <= rho + 2 sqrt(rho ln(1/delta)).
    rho = norm2 / 50
    assert found.epsilon <= rho + 2 * np.sqrt(rho * np.log(1 / DELTA))
    once = spent(
        samplers.spaced(N, 50, min_separation=40), binary_tree(64), 5.0, 32, DELTA
    )
    assert once.epsilon == pytest.approx(
        epsilon(dp.GaussianDpEvent(5.0 / np.sqrt(6))), rel=1e-9
    )


@pytest.mark.parametrize(
    ("sampler", "target", "event"),
    [
        (
            samplers.poisson(N, 0.05),
            2.0,
            lambda z: (dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(z)), 20),
        ),
        (samplers.cyclic(N, 50), 0.5, lambda z: (dp.GaussianDpEvent(z), 20)),
        (
            samplers.spaced(N, 50, min_separation=20),
            8.0,
            lambda z: (dp.GaussianDpEvent(z), 1),
        ),
    ],
)
def test_the_noise_for_an_epsilon_is_what_dp_accounting_calibrates(
    sampler, target, event
):
    found = multiplier_for(target, sampler, independent(), 20, DELTA)
    assert spent(sampler, independent(), found, 20, DELTA).epsilon <= target

    def composed(z):
        return dp.SelfComposedDpEvent(*event(z))

    expected = dp.calibrate_dp_mechanism(
        rdp.RdpAccountant, composed, target, DELTA, tol=1e-5
    )
    assert found == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(
    ("target", "rounds"), [(0.0, 10), (-1.0, 10), (np.inf, 10), (1.0, 0)]
)
def test_no_noise_for_an_epsilon_that_makes_no_sense(target, rounds):
    with pytest.raises(
        ValueError, match=r"expected a finite epsilon > 0 and rounds >= 1"
    ):
        multiplier_for(target, samplers.poisson(N, 0.05), independent(), rounds, DELTA)


def test_a_sampler_that_promises_nothing_gets_no_amplification():
    found = spent(samplers.cyclic(N, 50), independent(), 3.0, 10, DELTA)
    assert found.epsilon == pytest.approx(
        epsilon(dp.SelfComposedDpEvent(dp.GaussianDpEvent(3.0), 10)), rel=1e-9
    )


@pytest.mark.parametrize(
    "sampler",
    [samplers.poisson(N, 0.05), samplers.uniform(N, 50), samplers.cyclic(N, 50)],
)
def test_correlated_noise_without_limits_is_refused(sampler):
    with pytest.raises(ValueError, match=r"samplers\.spaced"):
        spent(sampler, binary_tree(16), 2.0, 16, DELTA)


def test_limits():
    sampler = samplers.poisson(N, 0.05)
    assert spent(sampler, independent(), 1.0, 0, DELTA).epsilon == 0
    assert spent(sampler, independent(), 0.0, 3, DELTA).epsilon == np.inf
    grows = [
        spent(sampler, independent(), 1.0, rounds, DELTA).epsilon
        for rounds in (1, 10, 100)
    ]
    assert grows == sorted(grows)
    with pytest.raises(ValueError, match="0 < delta < 1"):
        spent(sampler, independent(), 1.0, 1, 0.0)


@pytest.mark.parametrize(("separation", "most"), [(1, None), (4, None), (4, 2), (7, 1)])
def test_nobody_comes_back_too_early_or_too_often(separation, most):
    n, cohort, rounds = 30, 6, 24
    sampler = samplers.spaced(n, cohort, separation, most)

    def step(state, key):
        ids, n_active, state = sampler.draw(state, key)
        return state, (ids, n_active)

    keys = jax.random.split(jax.random.key(1), rounds)
    _, (ids, n_active) = jax.jit(lambda s: jax.lax.scan(step, s, keys))(sampler.init())
    log = {k: [] for k in range(n)}
    for t in range(rounds):
        here = np.asarray(ids[t][: n_active[t]]).tolist()
        assert len(set(here)) == len(here) <= cohort
        for k in here:
            log[k].append(t)
    gaps = [b - a for times in log.values() for a, b in itertools.pairwise(times)]
    assert all(gap >= separation for gap in gaps)
    assert max(map(len, log.values())) <= (most or rounds)
    if most is None:
        assert (np.asarray(n_active) == cohort).all()
        assert min(gaps) == separation  # the limit is reached, not exceeded
    else:
        assert (
            sum(map(len, log.values())) == n * most
        )  # everybody came as often as allowed, then nobody is left
        assert n_active[-1] == 0
    first = np.sort(np.asarray(ids[0]))
    assert not np.array_equal(first, np.arange(cohort))
