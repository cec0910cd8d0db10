"""Power-of-choice: who takes part, what is billed, what is refused."""

import numpy as np
import optax
import pytest
from drift_problem import TASK, centres, clients, cyclic_cohorts, run

import fedjax_fm as ffm
from fedjax_fm import privacy
from fedjax_fm.algorithms import power_of_choice, scaffold
from fedjax_fm.population import samplers

ETA = 0.3
WALK = {"local_steps": 1, "batch_size": 4}
SIZES = (1, 3, 2, 4, 2, 1)
H, A = centres(6)
DATA = clients(H, A, SIZES)
FEDAVG = ffm.fedavg(TASK, optax.sgd(ETA), **WALK)


def losses(w):
    return 0.5 * (H * (w - A) ** 2).sum(1)


def expected(d, m, rounds):
    """FedAvg in numpy on the m largest losses of each round's d candidates."""
    w = np.full(3, 0.5)
    for candidates in cyclic_cohorts(6, d, rounds):
        ranked = sorted(candidates, key=lambda k: -losses(w)[k])
        cohort = ranked[:m]
        n = np.array(SIZES)[cohort]
        steps = ETA * H[cohort] * (A[cohort] - w)
        w = w + n @ steps / n.sum()
    return w


@pytest.mark.parametrize(("d", "m"), [(4, 2), (6, 2), (3, 3)])
def test_the_largest_losses_take_part(d, m):
    method = power_of_choice(FEDAVG, TASK, cohort_size=m, batch_size=2)
    state, metrics, _ = run(method, DATA, 5, per_round=d)
    w = expected(d, m, 5)
    np.testing.assert_allclose(state.delta, w, rtol=1e-5)
    # 4 bytes from each candidate, three floats from each of the chosen
    assert metrics["uplink_bytes"].tolist() == [4 * d + 12 * m] * 5
    # the model goes to the candidates, and is not sent again
    assert metrics["downlink_bytes"].tolist() == [12 * d] * 5
    first = losses(np.full(3, 0.5))[:d]
    assert metrics["candidate_loss"][0] == pytest.approx(first.mean(), rel=1e-5)


def test_all_candidates_are_fedavgs_cohort():
    method = power_of_choice(FEDAVG, TASK, cohort_size=3, batch_size=2)
    state, _, _ = run(method, DATA, 4, per_round=3)
    plain, _, _ = run(FEDAVG, DATA, 4, per_round=3)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-6)


def test_candidates_are_drawn_by_the_simulators_sampler():
    """In proportion to their examples, as in the paper."""
    method = power_of_choice(FEDAVG, TASK, cohort_size=1, batch_size=2)
    drawn = samplers.weighted([0, 0, 1, 0, 3, 0], 2)
    state, _, _ = run(method, DATA, 1, per_round=2, sampler=drawn)
    k = max((2, 4), key=lambda k: losses(np.full(3, 0.5))[k])
    step = ETA * H[k] * (A[k] - 0.5)
    np.testing.assert_allclose(state.delta, 0.5 + step, rtol=1e-5)


def test_a_method_with_states_keeps_those_of_the_chosen():
    """SCAFFOLD behind it: only its control variate is billed on the second way down."""
    method = power_of_choice(
        scaffold(TASK, optax.sgd(ETA), **WALK), TASK, cohort_size=2, batch_size=2
    )
    state, metrics, _ = run(method, DATA, 1)
    chosen = np.argsort(-losses(np.full(3, 0.5)))[:2]
    moved = np.flatnonzero(np.abs(state.carry.clients).sum(1))
    assert sorted(moved.tolist()) == sorted(chosen.tolist())
    mean = np.mean(state.carry.clients, axis=0)
    np.testing.assert_allclose(
        state.carry.server.method.control, mean, rtol=1e-5, atol=1e-6
    )
    assert metrics["downlink_bytes"].tolist() == [12 * 6 + 12 * 2]
    assert metrics["uplink_bytes"].tolist() == [4 * 6 + 24 * 2]


def test_candidates_that_drop_out_are_not_chosen():
    behaviour = ffm.Behaviour(drops=lambda id, round, key: id != 3)
    method = power_of_choice(FEDAVG, TASK, cohort_size=2, batch_size=2)
    state, _, _ = run(method, DATA, behaviour=behaviour)
    step = ETA * H[3] * (A[3] - 0.5)
    np.testing.assert_allclose(state.delta, 0.5 + step, rtol=1e-5)


def test_what_makes_no_sense_is_refused():
    method = power_of_choice(FEDAVG, TASK, cohort_size=4, batch_size=2)
    with pytest.raises(ValueError, match="at least cohort_size=4 candidates"):
        run(method, DATA, per_round=3)
    with pytest.raises(TypeError, match="expected algorithm to be an Algorithm"):
        power_of_choice(TASK, TASK, cohort_size=1, batch_size=1)
    private = ffm.algorithms.dp_fedavg(
        TASK,
        optax.sgd(ETA),
        clip_norm=1.0,
        noise=privacy.independent(),
        noise_multiplier=1.0,
        **WALK,
    )
    with pytest.raises(ValueError, match="without a guarantee of privacy"):
        power_of_choice(private, TASK, cohort_size=1, batch_size=1)
    staged = ffm.algorithms.feddpa_f(
        TASK, TASK, optax.sgd(ETA), rounds=1, private_steps=1, **WALK
    )
    method = power_of_choice(staged, TASK, cohort_size=1, batch_size=1)
    with pytest.raises(ValueError, match="chooses its clients itself"):
        run(method, DATA)
