"""The laws of the random samplers, against closed forms and enumeration; all keys are fixed."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedjax_fm.population import samplers
from fedjax_fm.population.samplers import binomial


def draw_many(sampler, times, seed=0):
    """(ids i32[times, capacity], n_active i32[times]), each from the first state."""

    def draw(key):
        return sampler.draw(sampler.init(), key)[:2]

    return jax.tree.map(
        np.asarray,
        jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(seed), times)),
    )


def inclusion(ids, n_active, n):
    """f32[times, n]: 1 where a client is in the cohort."""
    rows = np.zeros((len(ids), n), np.float32)
    slots = np.arange(ids.shape[1]) < n_active[:, None]
    rows[np.nonzero(slots)[0], ids[slots]] = 1
    return rows


def assert_z(counts, times, probability, most=5.5):
    """Counts of events of known probability: no standard score beyond `most`, and their
    squares one on average.
    """
    scores = (counts - times * probability) / np.sqrt(
        times * probability * (1 - probability)
    )
    assert np.abs(scores).max() < most
    assert abs(np.mean(scores**2) - 1) < 6 * np.sqrt(2 / scores.size) + 2 / np.sqrt(
        len(counts)
    )


def assert_chi_square(counts, probabilities, most=5.0):
    """Of outcomes that exclude each other; those expected less than ten times are put together."""
    times = counts.sum()
    rare = probabilities * times < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(probabilities[~rare], 1 - probabilities[~rare].sum()) * times
    counts, expected = counts[expected > 1e-6], expected[expected > 1e-6]
    freedom = len(counts) - 1
    assert (
        np.sum((counts - expected) ** 2 / expected)
        < freedom + most * np.sqrt(2 * freedom) + most
    )


def pairs(rows):
    """How often two clients were in a cohort together, f32[n * (n - 1) / 2]."""
    return (rows.T @ rows)[np.triu_indices(rows.shape[1], 1)]


@pytest.mark.parametrize("n", [40, 100])  # by sort, by Feistel network
def test_uniform_every_client_and_every_pair_is_equally_likely(n):
    times, size = 20_000, 8
    rows = inclusion(*draw_many(samplers.uniform(n, size), times), n)
    assert_z(rows.sum(axis=0), times, size / n)
    assert_z(pairs(rows), times, size * (size - 1) / (n * (n - 1)))


@pytest.mark.parametrize("n", [40, 100])
def test_poisson_clients_decide_alone(n):
    times, rate = 20_000, 0.15
    sampler = samplers.poisson(n, rate)
    ids, n_active = draw_many(sampler, times)
    assert n_active.max() <= sampler.capacity < n
    rows = inclusion(ids, n_active, n)
    assert_z(rows.sum(axis=0), times, rate)
    assert_z(pairs(rows), times, rate**2)  # with the marginals: pairwise independence
    assert_chi_square(
        np.bincount(n_active, minlength=n + 1),
        stats.binom.pmf(np.arange(n + 1), n, rate),
    )


@pytest.mark.parametrize(
    ("n", "rate"),
    [(1_000_000, 1e-6), (1_000_000, 1e-4), (1_000_000, 1e-2), (1000, 0.5), (20, 0.9)],
)
def test_sizes_of_poisson_cohorts_are_binomial(n, rate):
    """200,000 draws, which tell jax.random.binomial at n = 1e6, rate = 1e-4 from the
    law by 13 standard deviations.
    """
    source = binomial.table(binomial.binomial(n, rate))
    keys = jax.random.split(jax.random.key(2), 200_000)
    sizes = np.asarray(
        jax.jit(
            lambda: jax.lax.map(
                lambda key: binomial.draw(source, key), keys, batch_size=2000
            )
        )()
    )
    low, high = sizes.min(), sizes.max()
    probabilities = stats.binom.pmf(np.arange(low, high + 1), n, rate)
    assert_chi_square(np.bincount(sizes - low), probabilities)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), rate=st.floats(1e-6, 1.0))
def test_the_table_is_the_binomial_law(n, rate):
    """Against rational arithmetic: relative error 1e-11, absolute 2**-64."""
    table = binomial.table(binomial.binomial(n, rate))
    steps = np.array([0, *table.thresholds.tolist(), 2**64], dtype=object)
    widths = dict(enumerate(np.diff(steps), start=table.first))
    q = Fraction(rate)
    for k in range(n + 1):
        exact = math.comb(n, k) * q**k * (1 - q) ** (n - k)
        # The outcome that takes what rounding leaves may be off by a step for each of the others.
        assert abs(Fraction(widths.get(k, 0), 2**64) - exact) <= exact * Fraction(
            1, 10**11
        ) + Fraction(n + 1, 2**64)


@pytest.mark.parametrize(
    ("n", "rate"),
    [(10**6, 1e-6), (10**6, 1e-3), (10**6, 0.3), (10**8, 1e-5), (10**4, 0.999)],
)
def test_large_laws_agree_with_scipy(n, rate):
    law = binomial.binomial(n, rate)
    k = law.first + np.arange(law.pmf.size)
    expected = stats.binom.pmf(k, n, rate)
    np.testing.assert_allclose(
        law.pmf, expected, rtol=1e-7, atol=1e-30
    )  # scipy's error, checked by fractions above
    assert (
        stats.binom.cdf(law.first - 1, n, rate) + stats.binom.sf(k[-1], n, rate) < 1e-24
    )


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 10**6), rate=st.floats(1e-7, 1.0))
def test_the_default_capacity_overflows_with_probability_below_1e_12(n, rate):
    capacity = samplers.poisson(n, rate).capacity
    assert 1 <= capacity <= n
    assert stats.binom.sf(capacity, n, rate) < 1e-12 * (1 + 1e-6)
    assert capacity == 1 or stats.binom.sf(capacity - 1, n, rate) >= 1e-12 * (1 - 1e-6)


def test_capacities_of_the_docstring():
    assert [samplers.poisson(10**6, rate).capacity for rate in (1e-5, 1e-4, 1e-3)] == [
        39,
        178,
        1230,
    ]
    assert samplers.poisson(10**6, 1.0).capacity == 10**6


def ordered_law(weights, size):
    """{(i_1, ..., i_size): probability} of draws without replacement, each proportional
    to the weights left.
    """
    law = {}
    for order in itertools.permutations(np.flatnonzero(weights).tolist(), size):
        law[order], left = 1.0, list(weights)
        for k in order:
            law[order] *= weights[k] / sum(left)
            left[k] = 0.0
    return law


@pytest.mark.parametrize(
    ("weights", "size"),
    [
        ([1.0, 2.0, 3.0, 4.0], 2),
        ([5.0, 0.0, 1.0, 1.0, 0.0, 3.0], 3),
        ([1.0, 1.0, 1.0], 3),
        ([1e-30, 1.0, 2e-30], 2),  # the two that are hopeless share the second place
        ([1e-300, 3e-300], 1),
        ([2e300, 1e300], 1),
    ],
)
def test_weighted_draws_follow_the_law_of_successive_sampling(weights, size):
    law = ordered_law(np.array(weights), size)
    ids, n_active = draw_many(samplers.weighted(weights, size), 40_000)
    assert (n_active == size).all()
    seen = {order: 0 for order in law}
    for order, times in zip(*np.unique(ids, axis=0, return_counts=True), strict=True):
        seen[tuple(order.tolist())] = int(
            times
        )  # a KeyError is a client of weight zero, or a repeat
    assert set(seen) == set(law)
    assert_chi_square(np.array(list(seen.values())), np.array(list(law.values())))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    weights=st.lists(
        st.sampled_from([0.0, 0.1, 1.0, 2.5, 7.0]), min_size=3, max_size=6
    ),
    size=st.integers(1, 3),
)
def test_weighted_inclusion_probabilities(weights, size):
    weights = np.array(weights)
    size = min(size, int(np.count_nonzero(weights)))
    if size == 0:
        return
    expected = np.zeros(len(weights))
    for order, probability in ordered_law(weights, size).items():
        expected[list(order)] += probability
    times = 4000
    counts = inclusion(
        *draw_many(samplers.weighted(weights, size), times), len(weights)
    ).sum(axis=0)
    deviation = np.sqrt(times * expected * np.maximum(1 - expected, 0))
    assert (np.abs(counts - times * expected) <= 5.5 * deviation + 1e-3).all()


def test_weights_have_no_unit_and_equal_ones_are_uniform():
    weights = np.arange(1.0, 51.0)
    a, b = (
        draw_many(samplers.weighted(scale * weights, 5), 200)[0]
        for scale in (1.0, 1024.0)
    )
    np.testing.assert_array_equal(a, b)
    rows = inclusion(*draw_many(samplers.weighted(np.ones(50), 5), 20_000), 50)
    assert_z(pairs(rows), 20_000, 5 * 4 / (50 * 49))


def test_shuffled_passes_take_every_order_equally_often():
    sampler = samplers.cyclic(4, 2, shuffle=True)

    def one_pass(key):
        first, _, state = sampler.draw(sampler.init(), key)
        second, _, state = sampler.draw(
            state, jax.random.key(0)
        )  # the order was fixed with the first block
        return jnp.concatenate([first, second])

    orders = np.asarray(
        jax.jit(jax.vmap(one_pass))(jax.random.split(jax.random.key(3), 24_000))
    )
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert_chi_square(counts, np.full(24, 1 / 24))


@pytest.mark.parametrize("form", ["array", "function"])
@pytest.mark.parametrize("n_available", [30, 90])
def test_available_is_uniform_among_those_who_are_there(n_available, form):
    n, size, times = 150, 6, 20_000
    there = np.zeros(n, bool)
    there[np.random.default_rng(0).permutation(n)[:n_available]] = True
    trace = there[None] if form == "array" else lambda t, key: jnp.asarray(there)
    rows = inclusion(*draw_many(samplers.available(n, size, trace), times), n)
    assert rows[:, ~there].sum() == 0
    assert_z(rows[:, there].sum(axis=0), times, size / n_available)
    assert_z(
        pairs(rows[:, there]),
        times,
        size * (size - 1) / (n_available * (n_available - 1)),
    )
