"""FedDyn against numpy, closed forms on quadratics, and what diverges."""

import numpy as np
import optax
import pytest
from drift_problem import TASK, centres, clients, cyclic_cohorts, optimum, run

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import feddyn
from fedjax_fm.engine import NonFiniteClient
from fedjax_fm.population import samplers

ETA, STEPS, ALPHA = 0.2, 4, 0.3
WALK = {"local_steps": STEPS, "batch_size": 4}
H, A = centres(5)
DATA = clients(H, A, (1, 3, 2, 4, 2))


def listing(cohorts):
    """Algorithm 1 with gradient steps: (w, h, g_k)."""
    w, h, own = np.full(3, 0.5), np.zeros(3), np.zeros((5, 3))
    for cohort in cohorts:
        ends = []
        for k in cohort:
            v = w.copy()
            for _ in range(STEPS):
                v = v - ETA * (H[k] * (v - A[k]) - own[k] + ALPHA * (v - w))
            own[k] = own[k] - ALPHA * (v - w)
            ends.append(v)
        h = h - ALPHA / 5 * np.sum(np.array(ends) - w, 0)
        w = np.mean(ends, 0) - h / ALPHA
    return w, h, own


def test_rounds_are_those_of_the_listing():
    method = feddyn(TASK, optax.sgd(ETA), alpha=ALPHA, **WALK)
    state, metrics, _ = run(method, DATA, 7, per_round=2)
    w, h, own = listing(cyclic_cohorts(5, 2, 7))
    np.testing.assert_allclose(state.delta, w, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(state.carry.server.correction, h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.carry.clients, own, rtol=1e-4, atol=1e-5)
    assert metrics["uplink_bytes"].tolist() == [2 * 12] * 7
    assert metrics["downlink_bytes"].tolist() == [2 * 12] * 7


def test_h_is_the_mean_of_all_g_behind_any_uplink():
    behaviour = ffm.Behaviour(drops=lambda id, round, key: (id + round) % 4 == 0)
    method = feddyn(TASK, optax.sgd(ETA), alpha=ALPHA, **WALK)
    how = {"uplink": channels.quantize(bits=3), "behaviour": behaviour}
    state, _, _ = run(method, DATA, 9, per_round=3, **how)
    mean = np.mean(state.carry.clients, axis=0)
    np.testing.assert_allclose(
        state.carry.server.correction, mean, rtol=1e-5, atol=1e-6
    )
    assert np.abs(mean).max() > 0.01


def test_clients_that_work_to_the_end_meet_at_the_optimum():
    """The local minimum is (h a + g + alpha w) / (h + alpha), where the gradient of f_k
    is the new g_k; where it rests, the g_k add up to zero.
    """
    walk = WALK | {"local_steps": 60}
    method = feddyn(TASK, optax.sgd(ETA), alpha=1.0, **walk)
    state, _, simulator = run(method, DATA)
    ends = (H * A + 0.5) / (H + 1)
    gradients = H * (ends - A)
    np.testing.assert_allclose(state.carry.clients, gradients, rtol=1e-4, atol=1e-5)
    plain = ffm.fedavg(TASK, optax.sgd(ETA), **walk)
    stalled, _, _ = run(plain, clients(H, A), 500)
    state, _ = simulator.run(state, 499)
    target = optimum(H, A)
    found = np.linalg.norm(np.asarray([stalled.delta, state.delta]) - target, axis=1)
    print("distances of FedAvg and FedDyn after 500 rounds:", found)
    assert found[0] > 0.3
    assert found[1] < 5e-6
    np.testing.assert_allclose(np.sum(state.carry.clients, axis=0), 0, atol=1e-5)


def test_one_client_with_alpha_one_is_there_after_one_round():
    """f = 1/2 (v - a)^2: v = (a + w) / 2, h = -(v - w), so w = v - h = a."""
    data = clients(np.ones((1, 3), np.float32), A[:1])
    method = feddyn(TASK, optax.sgd(0.5), alpha=1.0, local_steps=1, batch_size=1)
    state, _, _ = run(method, data)
    np.testing.assert_allclose(state.delta, A[0], rtol=1e-6)


def test_what_diverges_is_named_with_its_round():
    """eta (L + alpha) > 2: h and w grow until a client's numbers overflow."""
    method = feddyn(TASK, optax.sgd(1.9), alpha=0.5, **WALK)
    with pytest.raises(NonFiniteClient, match="lower the learning rate") as raised:
        run(method, DATA, 300)
    assert 5 < raised.value.round < 300
    assert f"round {raised.value.round}:" in str(raised.value)
    carry = raised.value.state.carry  # after the last good round
    assert np.isfinite(carry.server.correction).all()
    assert np.abs(carry.server.correction).max() > 1e10


def test_a_cohort_that_never_meets_some_clients_is_refused():
    method = feddyn(TASK, optax.sgd(ETA), **WALK)
    with pytest.raises(ValueError, match=r"FedDyn: .* while the server's h is a mean"):
        run(method, DATA, per_round=2, sampler=samplers.fixed([0, 2]))


def test_a_round_without_an_arrival_changes_nothing():
    behaviour = ffm.Behaviour(drops=lambda id, round, key: round == 1)
    method = feddyn(TASK, optax.sgd(ETA), alpha=ALPHA, **WALK)
    once, _, _ = run(method, DATA, 1)
    twice, _, _ = run(method, DATA, 2, behaviour=behaviour)
    np.testing.assert_array_equal(once.delta, twice.delta)
