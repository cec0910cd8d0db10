"""FLASC: FedAvg through two sparse channels, and what it keeps and evaluates."""

import jax
import numpy as np
import optax
import pytest
from quadratics import START, TASK, N, clients, run, simulator

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import flasc

RATE = 0.1
WALK = {"local_steps": 3, "batch_size": 4}
FIRST = np.float32([5, 0, -3, 2, 0.5, -0.1, 4, -1])


def make(server=None, **how):
    return flasc(TASK, optax.sgd(RATE, momentum=0.9), server, **(WALK | how))


def fedavg(server):
    return ffm.fedavg(TASK, optax.sgd(RATE, momentum=0.9), server, **WALK)


def finished(algorithm, rounds=4, **how):
    one = simulator(algorithm, **how)
    return one, *one.run(one.init(FIRST), rounds)


def test_with_all_entries_it_is_fedadam():
    _, found, paid = finished(make(density_down=1.0, density_up=1.0))
    _, expected, also = finished(fedavg(optax.adam(1e-3)))
    np.testing.assert_array_equal(found.delta, expected.delta)
    for name in ("uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(paid[name], also[name])


def test_it_is_fedavg_through_two_channels():
    server = optax.sgd(1.0)
    _, found, paid = finished(make(server, density_down=0.5, density_up=0.25))
    wires = {"uplink": channels.top_k(0.25), "downlink": channels.top_k(0.5)}
    _, expected, also = finished(fedavg(server), **wires)
    np.testing.assert_allclose(found.delta, expected.delta, rtol=1e-6)
    for name in ("uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(paid[name], also[name])
    assert paid["uplink_bytes"][0] == N * (2 * 4 + 1)


@pytest.mark.parametrize(("density", "kept"), [(0.3, 2), (0.5, 4), (0.99, 7)])
def test_the_floor_of_the_share_is_sent(density, kept):
    """The update is of all entries; those that are not sent keep the server's value."""
    _, state, _ = finished(
        make(optax.sgd(1.0), density_down=1.0, density_up=density),
        rounds=1,
        clients=clients()[:1],
        cohort_size=1,
    )
    moved = np.asarray(state.delta) != FIRST
    assert moved.sum() == kept
    _, plain, _ = finished(
        fedavg(optax.sgd(1.0)), rounds=1, clients=clients()[:1], cohort_size=1
    )
    np.testing.assert_allclose(state.delta[moved], plain.delta[moved], rtol=1e-6)


def test_what_is_sent_down_is_what_is_evaluated():
    one, state, _ = finished(make(density_down=0.5, density_up=0.5))
    for client in (None, 2):
        delta, _ = one.model(state, client)
        mask = np.asarray(ffm.kernels.top_k_mask(state.delta, 4))
        np.testing.assert_array_equal(delta, np.where(mask, state.delta, 0))
    assert np.count_nonzero(state.delta) > 4  # the server keeps the rest


def test_of_a_lora_the_first_download_is_the_factor_that_is_not_zero():
    delta = {"A": np.ones((2, 3), np.float32), "B": np.zeros((3, 2), np.float32)}
    method = make(density_down=0.5)
    server = method.init(delta, jax.random.key(0), None)
    assert method.model is not None
    sent, _ = method.model(server, None, ())
    np.testing.assert_array_equal(sent["A"], delta["A"])
    np.testing.assert_array_equal(sent["B"], 0)
    zeros = method.init(jax.tree.map(np.zeros_like, delta), jax.random.key(0), None)
    found = ffm.kernels.top_k_mask(np.zeros(12, np.float32), 6)
    assert np.flatnonzero(found).tolist() == list(range(6))  # ties: the first
    assert not any(np.any(x) for x in jax.tree.leaves(method.model(zeros, None, ())[0]))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"a density of 0\.01 keeps no entry of 8"):
        simulator(make(density_up=0.01)).init(START)
    for density in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match=f"density_up={density}"):
            make(density_up=density)
    with pytest.raises(TypeError, match="encoded_by_the_method"):
        run(make(), 1, uplink=channels.error_feedback(channels.top_k(0.5)))
