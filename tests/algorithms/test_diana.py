"""DIANA: its bookkeeping, its limits, and the optimum that QSGD does not reach."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import (
    FULL,
    OPTIMUM,
    START,
    TASK,
    A,
    D,
    H,
    N,
    clients,
    distance,
    gradients,
    run,
    simulator,
)

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import diana, fedpaq
from fedjax_fm.algorithms.parts import Stream
from fedjax_fm.testing.handles import client_key, round_key

RATE = 0.2
TERNARY = channels.ternary(None)


def make(channel=TERNARY, **how):
    return diana(TASK, RATE, channel, **(FULL | how))


def test_against_the_papers_algorithm_in_numpy():
    """With its momentum; the channel's draws are repeated by key."""
    channel, alpha, beta = channels.natural(), 0.5, 0.9
    state, _ = run(make(channel, momentum=beta, shift_rate=alpha), 4)
    x, h, v = START.astype(np.float64), np.zeros((N, D)), np.zeros(D)
    for t in range(4):
        sent = np.zeros((N, D))
        for k, g in enumerate(gradients(x)):
            key = client_key(round_key(5, t), k)
            key = jax.random.fold_in(key, int(Stream.ENCODE))
            payload, _ = channel.encode((), jnp.float32(g - h[k]), key)
            sent[k] = channel.decode(payload)
        v = beta * v + h.mean(0) + sent.mean(0)
        x, h = x - RATE * v, h + alpha * sent
    np.testing.assert_allclose(state.delta, x, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(state.carry.clients, h, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("who", ["all", "some", "drop-outs"])
def test_the_servers_shift_is_the_mean_of_the_clients(who):
    how = {"cohort_size": N if who == "all" else 3}
    if who == "drop-outs":
        how["behaviour"] = ffm.Behaviour(
            drops=lambda client, round_index, key: jax.random.bernoulli(key, 0.4)
        )
    state, _ = run(make(channels.random_k(0.3)), 30, **how)
    shifts = np.asarray(state.carry.clients, np.float64)
    assert np.abs(shifts).max() > 0.1
    np.testing.assert_allclose(
        state.carry.server.shift, shifts.mean(0), rtol=1e-4, atol=1e-5
    )


def test_linear_to_the_optimum_where_qsgd_stalls():
    """After 500 rounds: 1e-6 away with the shifts, 1.2 without them (TernGrad)."""
    state, metrics = run(make(), 500)
    stalled, also = run(make(shift_rate=0.0), 500)
    assert distance(state) < 1e-5
    assert distance(stalled) > 0.05
    np.testing.assert_array_equal(metrics["uplink_bytes"], also["uplink_bytes"])
    np.testing.assert_allclose(
        state.carry.clients, gradients(OPTIMUM), atol=1e-4, rtol=1e-4
    )
    halfway, _ = run(make(), 40)
    assert 1e-5 < distance(halfway) < 0.3 * np.linalg.norm(OPTIMUM)


def test_without_rounding_the_shift_is_the_gradient_before():
    state, _ = run(make(channels.identity()), 3)
    before, _ = run(make(channels.identity()), 2)
    np.testing.assert_allclose(
        state.carry.clients, gradients(before.delta), rtol=1e-5, atol=1e-5
    )
    x = START.astype(np.float64)
    for _ in range(3):
        x = x - RATE * gradients(x).mean(0)
    np.testing.assert_allclose(state.delta, x, rtol=1e-5)


def test_without_shifts_it_is_fedpaq_with_one_step():
    """QSGD: the channel is linear in a positive factor, under the same keys."""
    quantised = channels.quantize(4, norm="l2", bucket_size=None)
    found, _ = run(make(quantised, shift_rate=0.0), 5)
    same = fedpaq(TASK, optax.sgd(RATE), channel=quantised, local_steps=1, batch_size=4)
    expected, _ = run(same, 5)
    np.testing.assert_allclose(found.delta, expected.delta, rtol=1e-5, atol=1e-6)


def test_a_proximal_step():
    """The optimum of f + 2 |x|_1, by its condition."""

    def prox(x):
        return jnp.sign(x) * jnp.maximum(jnp.abs(x) - RATE * 2.0, 0.0)

    state, _ = run(make(channels.natural(), prox=prox), 500)
    x = np.asarray(state.delta, np.float64)
    slope = gradients(x).mean(0)
    zero = x == 0
    assert zero.any()
    assert not zero.all()
    assert np.abs(slope[zero]).max() <= 2
    np.testing.assert_allclose(slope[~zero], -2 * np.sign(x[~zero]), atol=1e-4)


def test_the_gradient_is_over_all_batches():
    """Batches of two over five examples weigh what they hold."""
    rng = np.random.default_rng(0)
    batch = {
        "a": rng.normal(size=(5, D)).astype(np.float32),
        "h": rng.uniform(1, 2, size=(5, D)).astype(np.float32),
    }
    how = {"clients": [batch], "cohort_size": 1}
    state, _ = run(make(channels.identity(), batch_size=2), 1, **how)
    whole = (batch["h"] * (START - batch["a"])).mean(0)
    np.testing.assert_allclose(state.delta, START - RATE * whole, rtol=1e-5, atol=1e-7)


def test_bytes_are_those_of_the_buffers():
    _, metrics = run(make(), 1)
    assert metrics["uplink_bytes"].tolist() == [N * (2 + 4)]  # 8 entries in two bytes
    assert metrics["downlink_bytes"].tolist() == [N * 4 * D]


def test_a_biased_channel_and_a_second_memory_are_refused():
    with pytest.raises(ValueError, match=r"unbiased channel.*biased.*or ef21"):
        make(channels.top_k(0.5))
    with pytest.raises(ValueError, match="leave error_feedback"):
        make(channels.error_feedback(channels.top_k(0.5)))
    with pytest.raises(ValueError, match="law=None"):
        make(channels.nnadq())
    chained = channels.chain(channels.random_k(0.5), channels.quantize(4))
    make(chained)
    with pytest.raises(ValueError, match="unbiased"):
        make(channels.chain(channels.top_k(0.5), channels.quantize(4)))


def test_a_shift_rate_that_its_theory_does_not_cover_is_refused():
    one = simulator(make(shift_rate=0.9))
    with pytest.raises(ValueError, match=r"shift_rate <= .* = 0\.5224.*got shift_rate"):
        one.init(START)


@pytest.mark.parametrize("rate", [0, -0.1])
def test_learning_rates_are_positive(rate):
    with pytest.raises(ValueError, match=f"learning_rate={rate}"):
        diana(TASK, rate, TERNARY, **FULL)


def test_a_client_without_examples_changes_nothing():
    empty = {name: x[:0] for name, x in clients()[0].items()}
    with_one = [*clients(), empty]
    how = {"clients": with_one, "cohort_size": N + 1}
    first, _ = run(make(channels.identity()), 1, **how)
    np.testing.assert_allclose(first.delta, START + RATE * (H * A).mean(0), rtol=1e-5)
    last, _ = run(make(), 500, **how)  # h is a mean over seven, the step one over six
    assert distance(last) < 1e-5


def test_a_gradient_that_is_not_finite_is_found_behind_codes_without_floats():
    broken = clients()
    broken[2]["a"][0, 0] = np.nan
    one = simulator(make(channels.natural()), clients=broken)
    with pytest.raises(FloatingPointError, match="client 2"):
        one.run(one.init(START), 1)
