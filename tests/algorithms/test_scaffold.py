"""SCAFFOLD against a numpy loop of the paper's listing, its fixed point, its bytes."""

import jax
import numpy as np
import optax
import pytest
from drift_problem import TASK, centres, clients, cyclic_cohorts, optimum, run

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import scaffold
from fedjax_fm.population import samplers

ETA, STEPS = 0.2, 4
WALK = {"local_steps": STEPS, "batch_size": 4}
H, A = centres(5)
DATA = clients(H, A, (1, 3, 2, 4, 2))


def listing(option, cohorts, global_rate=1.0):
    """Algorithm 1: (x, c, c_k) after these cohorts, option II from x - y as written."""
    x, c, own = np.full(3, 0.5), np.zeros(3), np.zeros((5, 3))
    for cohort in cohorts:
        moves, changes = [], []
        for k in cohort:
            y = x.copy()
            for _ in range(STEPS):
                y = y - ETA * (H[k] * (y - A[k]) - own[k] + c)
            if option == "I":
                new = H[k] * (x - A[k])
            else:
                new = own[k] - c + (x - y) / (STEPS * ETA)
            moves.append(y - x)
            changes.append(new - own[k])
            own[k] = new
        x = x + global_rate * np.mean(moves, 0)
        c = c + len(cohort) / 5 * np.mean(changes, 0)
    return x, c, own


@pytest.mark.parametrize("option", ["I", "II"])
def test_rounds_are_those_of_the_listing(option):
    """Two of five clients a round: states of those who are away stay."""
    method = scaffold(TASK, optax.sgd(ETA), optax.sgd(0.8), option=option, **WALK)
    state, metrics, simulator = run(method, DATA, 7, per_round=2)
    x, c, own = listing(option, cyclic_cohorts(5, 2, 7), 0.8)
    np.testing.assert_allclose(state.delta, x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.carry.server.control, c, rtol=1e-4, atol=1e-6)
    found = [simulator.client_state(state, k) for k in range(5)]
    np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-6)
    # two trees of three floats each way, for each of two clients
    assert metrics["uplink_bytes"].tolist() == [2 * 2 * 12] * 7
    assert metrics["downlink_bytes"].tolist() == [2 * 2 * 12] * 7


def test_clients_that_are_all_alike_are_fedavg():
    same = clients(H[:1].repeat(4, 0), A[:1].repeat(4, 0))
    plain, _, _ = run(ffm.fedavg(TASK, optax.sgd(ETA), **WALK), same, 5)
    for option in ("I", "II"):
        method = scaffold(TASK, optax.sgd(ETA), option=option, **WALK)
        state, _, _ = run(method, same, 5)
        np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-5)


def distances(state, target):
    return float(np.linalg.norm(np.asarray(state.delta) - target))


def test_it_reaches_the_optimum_where_fedavg_stalls():
    """Five clients of equal size, ten local steps, 500 rounds of all of them. FedAvg
    rests 0.079 away from the optimum; SCAFFOLD's error halves every round, down to
    1.6e-7, what f32 can tell.
    """
    data, walk, target = clients(H, A), WALK | {"local_steps": 10}, optimum(H, A)
    plain, _, _ = run(ffm.fedavg(TASK, optax.sgd(0.05), **walk), data, 500)
    state, _, simulator = run(scaffold(TASK, optax.sgd(0.05), **walk), data, 4)
    at = [distances(state, target)]
    for _ in range(3):
        state, _ = simulator.run(state, 4)
        at.append(distances(state, target))
    ratios = np.array(at[1:]) / at[:-1]
    state, _ = simulator.run(state, 484)
    print(
        "distances after 500 rounds:",
        distances(plain, target),
        distances(state, target),
    )
    print("of SCAFFOLD after 4, 8, 12, 16 rounds:", at)
    assert distances(plain, target) > 0.07
    assert distances(state, target) < 1e-6
    assert (ratios < 0.2).all(), ratios


def test_the_servers_variate_is_the_mean_behind_any_uplink():
    """Part of the clients, a coarse uplink, and some that drop out."""
    behaviour = ffm.Behaviour(drops=lambda id, round, key: (id + round) % 4 == 0)
    method = scaffold(TASK, optax.sgd(0.05), **WALK)
    how = {"uplink": channels.quantize(bits=3), "behaviour": behaviour}
    state, _, _ = run(method, DATA, 9, per_round=3, **how)
    mean = np.mean(state.carry.clients, axis=0)
    np.testing.assert_allclose(state.carry.server.control, mean, rtol=1e-5, atol=1e-6)
    assert np.abs(mean).max() > 0.1


def test_a_schedule_over_rounds_and_steps_scales_nothing():
    """Option II divides by the rates that were used: the mean of gradients does so."""
    rates = optax.piecewise_constant_schedule(0.1, {2: 0.5})
    method = scaffold(TASK, optax.sgd(rates), **WALK)
    state, _, _ = run(method, DATA[:1], 1)
    y, seen = np.full(3, 0.5), []
    for rate in (0.1, 0.1, 0.05, 0.05):
        seen.append(H[0] * (y - A[0]))
        y = y - rate * seen[-1]
    own = jax.tree.leaves(state.carry.clients)[0][0]
    np.testing.assert_allclose(own, np.mean(seen, 0), rtol=1e-5)


def test_a_cohort_that_never_meets_some_clients_is_refused():
    method = scaffold(TASK, optax.sgd(ETA), **WALK)
    with pytest.raises(ValueError, match=r"same 2 of 5 clients, and never client 1,"):
        run(method, DATA, per_round=2, sampler=samplers.fixed([0, 2]))
    with pytest.raises(ValueError, match="a mean over all"):
        run(method, DATA, per_round=1, sampler=samplers.weighted([0, 0, 1, 0, 0], 1))
    run(method, DATA, sampler=samplers.fixed(range(5)))


@pytest.mark.parametrize("option", ["III", 1, None, "ii"])
def test_options_have_names(option):
    with pytest.raises(ValueError, match="expected option to be one of 'I', 'II'"):
        scaffold(TASK, optax.sgd(ETA), option=option, **WALK)
