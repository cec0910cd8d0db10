"""FedLin: its fixed point is the optimum, FedAvg's is not; sparsified gradients."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import (
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
from fedjax_fm.algorithms import fedlin

RATE, STEPS = 0.1, 5
WALK = {"local_steps": STEPS, "batch_size": 4}
QUARTER = channels.top_k(0.25)


def make(rate=RATE, **how):
    return fedlin(TASK, rate, **(WALK | how))


def largest(x, k=2):
    kept = np.argsort(-np.abs(x), axis=-1, kind="stable")[..., :k]
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, kept, True, axis=-1)
    return np.where(mask, x, 0)


def in_numpy(rounds, client=None, server=None, steps=STEPS, rate=RATE):
    """The paper's algorithm 1, the gradients of a round first."""
    x, rho, e = START.astype(np.float64), np.zeros((N, D)), np.zeros(D)
    for _ in range(rounds):
        wanted = rho + gradients(x)
        sent = largest(wanted) if client else wanted
        rho = wanted - sent
        g = e + sent.mean(0)
        e, g = (g - largest(g), largest(g)) if server else (np.zeros(D), g)
        y = np.repeat(x[None], N, 0)
        for _ in range(steps):
            y = y - rate * (gradients(y) - gradients(x) + g)
        x = y.mean(0)
    return x, rho, e


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("server", [False, True])
def test_against_the_papers_algorithm_in_numpy(client, server):
    how = {
        "client_channel": QUARTER if client else None,
        "server_channel": QUARTER if server else None,
    }
    state, _ = run(make(**how), 8)
    x, rho, e = in_numpy(8, client, server)
    np.testing.assert_allclose(state.delta, x, rtol=1e-4, atol=1e-4)
    if client:
        np.testing.assert_allclose(state.carry.clients, rho, rtol=1e-3, atol=1e-3)
    if server:
        np.testing.assert_allclose(state.carry.server.residual, e, rtol=1e-3, atol=1e-3)


def test_linear_to_the_optimum_where_fedavg_stalls():
    """After 500 rounds: 1e-6 away; FedAvg sits at its own fixed point, 0.18 away."""
    state, _ = run(make(), 500)
    plain = ffm.fedavg(TASK, optax.sgd(RATE), **WALK)
    stalled, _ = run(plain, 500)
    assert distance(state) < 1e-5
    share = 1 - (1 - RATE * H) ** STEPS
    biased = (share * A).sum(0) / share.sum(0)
    np.testing.assert_allclose(stalled.delta, biased, rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(biased - OPTIMUM) > 0.1
    np.testing.assert_allclose(
        distance(stalled), np.linalg.norm(biased - OPTIMUM), rtol=1e-3
    )


def test_the_optimum_is_fixed_for_any_numbers_of_steps():
    """Clients of different sizes take different numbers of steps; batches are of one."""
    ragged = clients(sizes=(1, 2, 3, 1, 2, 5))
    for divided in (False, True):
        walk = {"epochs": 2, "batch_size": 1, "local_steps": None}
        method = make(weighted=False, divided=divided, **walk)
        one = simulator(method, clients=ragged)
        state, _ = one.run(one.init(jnp.float32(OPTIMUM)), 3)
        assert distance(state) < 2e-6
        state, _ = run(method, 500, clients=ragged)
        assert distance(state) < 1e-5


def test_weighted_clients_have_the_optimum_of_all_examples():
    copies = np.array((1, 2, 3, 1, 2, 5))
    state, _ = run(make(), 500, clients=clients(sizes=copies))
    weighted = H * copies[:, None]
    assert distance(state, (weighted * A).sum(0) / weighted.sum(0)) < 1e-5


def test_one_step_is_gradient_descent():
    state, _ = run(make(local_steps=1), 5)
    x = START.astype(np.float64)
    for _ in range(5):
        x = x - RATE * gradients(x).mean(0)
    np.testing.assert_allclose(state.delta, x, rtol=1e-5)
    divided, _ = run(make(rate=STEPS * RATE, divided=True), 5)
    undivided, _ = run(make(), 5)
    np.testing.assert_allclose(divided.delta, undivided.delta, rtol=1e-5)


def test_sparsified_at_the_server_it_arrives_at_the_clients_only_near():
    """After 1500 rounds at a quarter of the entries: 3e-6 and 0.42 away."""
    small = {"rate": 0.02}
    state, _ = run(make(server_channel=QUARTER, **small), 1500)
    assert distance(state) < 1e-4
    near, _ = run(make(client_channel=QUARTER, **small), 1500)
    assert 1e-3 < distance(near) < 0.5 * np.linalg.norm(OPTIMUM)


def test_gradients_that_vanish_at_the_optimum_may_be_sparsified():
    same = [{"a": A[:1], "h": H[k : k + 1]} for k in range(N)]
    how = {"client_channel": QUARTER, "server_channel": QUARTER, "rate": 0.02}
    state, _ = run(make(**how), 1500, clients=same)
    assert distance(state, A[0]) < 1e-4


def test_what_was_sent_and_what_is_left_is_all():
    """Summed over the rounds: h + r is the sum of the gradients, entry by entry."""
    one = simulator(make(client_channel=QUARTER), clients=clients()[:1], cohort_size=1)
    state = one.init(START)
    sent, all_of_them = np.zeros(D), np.zeros(D)
    for _ in range(6):
        all_of_them += gradients(state.delta)[0]
        state, _ = one.run(state, 1)
        sent += np.asarray(state.carry.server.gradient)  # of one client: its own
        left = np.asarray(state.carry.clients)[0]
        np.testing.assert_allclose(sent + left, all_of_them, rtol=1e-4, atol=1e-4)


def test_bytes_of_both_exchanges():
    how = {"client_channel": QUARTER, "server_channel": QUARTER}
    _, metrics = run(make(**how), 1)
    model, sparse = 4 * D, 2 * 4 + 1  # two values and six bits of places
    assert metrics["uplink_bytes"].tolist() == [N * (sparse + model)]
    assert metrics["downlink_bytes"].tolist() == [N * (model + sparse)]
    _, metrics = run(make(), 1)
    assert metrics["downlink_bytes"].tolist() == [2 * N * model]


def test_channels_of_the_simulator():
    """An uplink carries both exchanges where the method has no channel of its own."""
    _, metrics = run(make(), 1, uplink=QUARTER)
    assert metrics["uplink_bytes"].tolist() == [2 * N * 9]
    with pytest.raises(TypeError, match="carries floating leaves only"):
        run(make(), 1, downlink=QUARTER)
    with pytest.raises(TypeError, match="encoded_by_the_method"):
        run(make(client_channel=QUARTER), 1, uplink=QUARTER)
    with pytest.raises(ValueError, match="send again by themselves what was lost"):
        run(make(client_channel=QUARTER), 1, uplink=channels.error_feedback(QUARTER))


def test_what_does_not_fit_is_refused():
    for name in ("client_channel", "server_channel"):
        with pytest.raises(ValueError, match=f"{name}.*leave error_feedback"):
            make(**{name: channels.error_feedback(QUARTER)})
        one = simulator(make(**{name: channels.random_k(0.25)}))
        with pytest.raises(ValueError, match=f"{name}.*does not contract"):
            one.init(START)
    for rate in (0, -1.0):
        with pytest.raises(ValueError, match=f"learning_rate={rate}"):
            make(rate)
