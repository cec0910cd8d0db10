"""EF21: the paper's algorithm in numpy, and the optimum that top-k alone does not reach."""

import jax
import numpy as np
import optax
import pytest
from quadratics import (
    FULL,
    OPTIMUM,
    START,
    TASK,
    D,
    N,
    distance,
    gradients,
    run,
    simulator,
)

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import ef21

RATE = 0.1


def make(channel, **how):
    return ef21(TASK, RATE, channel, **(FULL | how))


def largest(x, k):
    """Row by row the k entries of largest magnitude."""
    kept = np.argsort(-np.abs(x), axis=1, kind="stable")[:, :k]
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, kept, True, axis=1)
    return np.where(mask, x, 0)


def test_against_the_papers_algorithm_in_numpy():
    state, _ = run(make(channels.top_k(0.25)), 12)
    x, g = START.astype(np.float64), np.zeros((N, D))
    for _ in range(12):
        g = g + largest(gradients(x) - g, 2)
        x = x - RATE * g.mean(0)
    np.testing.assert_allclose(state.delta, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.carry.clients, g, rtol=1e-3, atol=1e-4)


def test_linear_to_the_optimum_where_top_k_stalls():
    """After 500 rounds: 9e-7 away, and 2.7 by the mean of what top-k keeps."""
    state, metrics = run(make(channels.top_k(0.125)), 500)
    one_step = ffm.fedavg(TASK, optax.sgd(RATE), local_steps=1, batch_size=4)
    stalled, also = run(one_step, 500, uplink=channels.top_k(0.125))
    assert distance(state) < 1e-5
    assert distance(stalled) > 0.5
    np.testing.assert_array_equal(metrics["uplink_bytes"], also["uplink_bytes"])
    assert metrics["uplink_bytes"][0] == N * (4 + 1)  # a value, a place
    np.testing.assert_allclose(
        state.carry.clients, gradients(OPTIMUM), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "channel",
    [channels.sign(), channels.quantize(3), channels.chain(channels.top_k(0.5), channels.int_blocks(4))],
    ids=["sign", "quantize", "chain"],
)  # fmt: skip
def test_other_contractions_reach_it_too(channel):
    state, _ = run(make(channel), 1500)
    assert distance(state) < 1e-4


def test_without_compression_it_is_gradient_descent():
    state, _ = run(make(channels.identity()), 5)
    x = START.astype(np.float64)
    for _ in range(5):
        x = x - RATE * gradients(x).mean(0)
    np.testing.assert_allclose(state.delta, x, rtol=1e-5)


@pytest.mark.parametrize("drops", [False, True])
def test_the_servers_gradient_is_the_mean_of_the_clients(drops):
    how = {"cohort_size": 3}
    if drops:
        how["behaviour"] = ffm.Behaviour(
            drops=lambda client, round_index, key: jax.random.bernoulli(key, 0.4)
        )
    state, _ = run(make(channels.top_k(0.25)), 40, **how)
    known = np.asarray(state.carry.clients, np.float64)
    assert np.abs(known).max() > 0.1
    np.testing.assert_allclose(
        state.carry.server.gradient, known.mean(0), rtol=1e-4, atol=1e-5
    )


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="leave error_feedback"):
        make(channels.error_feedback(channels.top_k(0.5)))
    with pytest.raises(ValueError, match="law=None"):
        make(channels.threshold(0.5))
    one = simulator(make(channels.random_k(0.25)))  # four times too large where it hits
    with pytest.raises(
        ValueError, match=r"messages of 8 floats .* 3 times .*scaled=False"
    ):
        one.init(START)
    run(make(channels.random_k(0.25, scaled=False)), 1)


def test_error_feedback_beside_it_is_refused():
    feedback = channels.error_feedback(channels.top_k(0.5))
    one = simulator(make(channels.top_k(0.25)), uplink=feedback)
    with pytest.raises(ValueError, match="send again by themselves what was lost"):
        one.init(START)
    one = simulator(make(channels.top_k(0.25)), uplink=channels.top_k(0.5))
    with pytest.raises(TypeError, match="encoded_by_the_method"):
        one.init(START)


@pytest.mark.parametrize("rate", [0, -0.1])
def test_learning_rates_are_positive(rate):
    with pytest.raises(ValueError, match=f"learning_rate={rate}"):
        ef21(TASK, rate, channels.sign(), **FULL)
