"""q-FedAvg against numpy, FedAvg, and what it is for."""

import numpy as np
import optax
import pytest
from drift_problem import TASK, centres, clients, run

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import qfedavg
from fedjax_fm.engine import NonFiniteClient

ETA, STEPS = 0.1, 3
WALK = {"local_steps": STEPS, "batch_size": 4}
SIZES = (1, 3, 2, 4)
H, A = centres()
DATA = clients(H, A, SIZES)


def losses(w):
    return 0.5 * (H * (w - A) ** 2).sum(1)


def listing(q, rounds, lipschitz=1 / ETA):
    w = np.full(3, 0.5)
    for _ in range(rounds):
        f = losses(w) + 1e-10
        d = lipschitz * (1 - (1 - ETA * H) ** STEPS) * (w - A)
        change = (f**q)[:, None] * d
        size = q * f ** (q - 1) * (d**2).sum(1) + lipschitz * f**q
        w = w - change.sum(0) / size.sum()
    return w


@pytest.mark.parametrize("q", [0.2, 2.0])
def test_rounds_are_those_of_the_listing(q):
    state, metrics, _ = run(qfedavg(TASK, optax.sgd(ETA), q=q, **WALK), DATA, 4)
    np.testing.assert_allclose(state.delta, listing(q, 4), rtol=1e-4)
    # three floats and h up, three down, for each of four clients
    assert metrics["uplink_bytes"].tolist() == [4 * 16] * 4
    assert metrics["downlink_bytes"].tolist() == [4 * 12] * 4


def test_the_rate_may_be_given():
    method = qfedavg(TASK, optax.sgd(ETA), q=1.0, lipschitz=25.0, **WALK)
    state, _, _ = run(method, DATA, 3)
    np.testing.assert_allclose(state.delta, listing(1.0, 3, 25.0), rtol=1e-4)


def test_with_q_zero_it_is_the_plain_mean_of_the_clients():
    """FedAvg on clients of one size; weights by examples are gone."""
    state, _, _ = run(qfedavg(TASK, optax.sgd(ETA), q=0.0, **WALK), DATA, 3)
    plain, _, _ = run(ffm.fedavg(TASK, optax.sgd(ETA), **WALK), clients(H, A), 3)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-5)


def test_equal_losses_shorten_fedavgs_step_by_a_known_factor():
    """Two clients in a mirror: losses F and lengths D are equal, the step is FedAvg's
    through 1 + q eta D^2 / F.
    """
    h, q = np.ones((2, 3), np.float32), 3.0
    a = np.array([[1.5, 2.5, 0.5], [1.5, -1.5, 0.5]], np.float32)
    walk = {"local_steps": 1, "batch_size": 1}
    state, _, _ = run(qfedavg(TASK, optax.sgd(ETA), q=q, **walk), clients(h, a))
    plain, _, _ = run(ffm.fedavg(TASK, optax.sgd(ETA), **walk), clients(h, a))
    d = a[0] - 0.5
    factor = 1 + q * ETA * (d @ d) / (0.5 * d @ d)
    step, of_fedavg = np.asarray(state.delta) - 0.5, np.asarray(plain.delta) - 0.5
    np.testing.assert_allclose(step, of_fedavg / factor, rtol=1e-5)


def test_a_loss_of_zero_gives_no_nan():
    """One client is at its minimum: with q < 1 its F^(q-1) is huge, with D = 0."""
    a = np.array([[0.5] * 3, [2.0] * 3], np.float32)
    data = clients(np.ones((2, 3), np.float32), a)
    for q in (0.0, 0.2, 0.999, 5.0):
        state, _, _ = run(qfedavg(TASK, optax.sgd(ETA), q=q, **WALK), data, 2)
        assert np.isfinite(state.delta).all()
        assert (np.asarray(state.delta) > 0.5).all()


def test_a_larger_q_makes_losses_more_alike():
    spread = []
    for q in (0.0, 1.0, 5.0):
        state, _, _ = run(qfedavg(TASK, optax.sgd(ETA), q=q, **WALK), DATA, 1500)
        found = losses(np.asarray(state.delta))
        spread.append((found.std(), found.max()))
    assert spread[0] > spread[1] > spread[2], spread


def test_powers_below_what_f32_can_hold_stop_the_run():
    """F^q = 1e-6^15: nothing can be said of the step, and nothing is made up."""
    a = np.full((1, 3), 0.501, np.float32)
    data = clients(np.ones((1, 3), np.float32), a)
    with pytest.raises(NonFiniteClient):
        run(qfedavg(TASK, optax.sgd(ETA), q=15.0, **WALK), data, 3)


def test_a_coarse_uplink_may_spare_the_size():
    spared = channels.per_leaf(
        ("size", channels.identity()), otherwise=channels.quantize(bits=8)
    )
    method = qfedavg(TASK, optax.sgd(ETA), q=1.0, **WALK)
    state, _, _ = run(method, DATA, 3, uplink=spared)
    np.testing.assert_allclose(state.delta, listing(1.0, 3), rtol=0.05)
