"""DoCoFL: what clients train is y + C(w - y), and each anchor is paid once a client."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import START, TASK, A, D, H, N, distance, run, simulator

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import docofl
from fedjax_fm.testing.handles import fixed_cohort
from fedjax_fm.types import Sampler

RATE = 0.1
WALK = {"local_steps": 3, "batch_size": 4}
FOUR, EIGHT = channels.quantize(4), channels.quantize(8)


def make(anchor=EIGHT, correction=FOUR, **how):
    return docofl(
        TASK, optax.sgd(RATE), anchor=anchor, correction=correction, **(WALK | how)
    )


def test_without_compression_it_is_fedavg():
    exact = channels.identity()
    found, _ = run(make(exact, exact, every=3), 8)
    expected, _ = run(ffm.fedavg(TASK, optax.sgd(RATE), **WALK), 8)
    np.testing.assert_allclose(found.delta, expected.delta, rtol=1e-5)


def test_against_a_plain_loop():
    """The messages of a round are those that stand in the server's state before it."""
    one = simulator(make(every=2))
    state = one.init(START)
    w = START.astype(np.float64)
    anchors = []
    for t in range(5):
        server = state.carry.server
        y = np.asarray(EIGHT.decode(server.anchor), np.float64)
        correction = np.asarray(FOUR.decode(server.correction), np.float64)
        norm = np.abs(w - y).max()
        assert np.abs(correction - (w - y)).max() <= norm / 7 * (1 + 1e-4) + 1e-6
        anchors.append(y)
        start = y + correction
        update = start - (A + (1 - RATE * H) ** 3 * (start - A))
        w = w - update.mean(0)
        state, _ = one.run(state, 1)
        np.testing.assert_allclose(state.delta, w, rtol=1e-4, atol=1e-5)
        w = np.asarray(state.delta, np.float64)
        assert int(state.carry.server.version) == (t + 1) // 2
    assert np.array_equal(anchors[0], anchors[1])
    assert not np.array_equal(anchors[1], anchors[2])
    assert np.array_equal(anchors[2], anchors[3])


def test_what_clients_train_is_unbiased_for_the_model():
    method = make(correction=channels.quantize(3, norm="l2"), every=100)
    one = simulator(method)
    found = []
    for seed in range(300):
        server = one.init(START + 1, seed=seed).carry.server
        change = channels.quantize(3, norm="l2").decode(server.correction)
        held = np.asarray(EIGHT.decode(server.anchor), np.float64)
        found.append(held + np.asarray(change, np.float64) - 1 - START)
    found = np.stack(found)
    spread = found.std(0) + 1e-9
    assert np.abs(found.mean(0) / spread * np.sqrt(300)).max() < 4.5


def test_an_anchor_is_paid_once_a_client():
    """A fixed row of cohorts: who comes back within the anchor's time has it."""
    rows = jnp.array([[0, 1], [1, 2], [0, 2], [0, 5]], jnp.int32)
    sampler = Sampler(
        init=lambda: jnp.int32(0),
        draw=lambda state, key: (rows[state], jnp.int32(2), state + 1),
        capacity=2,
    )
    state, metrics = run(make(every=3), 4, cohort_size=2, sampler=sampler)
    anchor = len(jax.tree.leaves(START)) * (D + 4)  # eight codes of a byte, a scale
    correction = D // 2 + 4
    fetched = [2, 1, 0, 2]  # of round 3 the anchor is new to everyone
    expected = [2 * correction + n * anchor for n in fetched]
    assert metrics["downlink_bytes"].tolist() == expected
    np.testing.assert_allclose(metrics["anchors_fetched"], np.array(fetched) / 2)
    assert state.carry.clients.tolist() == [1, 0, 0, -1, -1, 1]
    payload, _ = EIGHT.encode((), START, jax.random.key(0))
    assert sum(x.nbytes for x in jax.tree.leaves(payload)) == anchor


def test_an_anchor_whose_length_the_data_decide():
    anchor = channels.threshold(0.5, relative_to="max")
    _, metrics = run(make(anchor, every=1), 2, cohort_size=N)
    assert len(set(metrics["downlink_bytes"].tolist())) == 2
    fixed = simulator(make(anchor, every=5), sampler=fixed_cohort([0]), cohort_size=1)
    _, metrics = fixed.run(fixed.init(START + 1), 2)
    positions = 4 + D // 8  # a count and a bitmap; all eight values are alike
    assert metrics["downlink_bytes"].tolist() == [
        positions + 4 * D + D // 2 + 4,
        D // 2 + 4,
    ]


def test_it_learns_through_few_bits():
    state, _ = run(make(channels.quantize(4), channels.quantize(2), every=5), 200)
    share = 1 - (1 - RATE * H) ** 3
    assert distance(state, (share * A).sum(0) / share.sum(0)) < 0.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"correction: expected an unbiased"):
        make(correction=channels.top_k(0.5))
    with pytest.raises(ValueError, match=r"anchor.*leave error_feedback"):
        make(anchor=channels.error_feedback(channels.top_k(0.5)))
    with pytest.raises(ValueError, match="every=0"):
        make(every=0)
    with pytest.raises(TypeError, match="carries floating leaves only"):
        run(make(), 1, downlink=FOUR)

    run(make(), 1, uplink=channels.error_feedback(channels.top_k(0.5)))
