"""One answer for every layout: numpy loop == blocks == vmap == devices == fused rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import (
    SIZES,
    everyone,
    lossy,
    make_clients,
    make_trees,
    mlp_loss,
    simulate,
)

import fedjax_fm as ffm
from fedjax_fm.types import Sampler


def test_full_batch_fedavg_equals_a_numpy_loop():
    """All clients, full batches, plain SGD: nothing is random, so an independent loop
    must agree.
    """
    delta, backbone = make_trees()
    clients = make_clients()
    algorithm = ffm.fedavg(
        ffm.Task(mlp_loss), optax.sgd(0.05), local_steps=3, batch_size=max(SIZES)
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        backbone=backbone,
        cohort_size=8,
        sampler=everyone(8),
    )
    state, metrics = simulator.run(simulator.init(delta), 2)

    w, v, base = (
        delta["w"].astype(np.float64),
        delta["v"].astype(np.float64),
        backbone["w"].astype(np.float64),
    )
    losses = []
    for _ in range(2):
        ends, seen = [], []
        for client in clients:
            x, y, cw, cv = (
                client["x"].astype(np.float64),
                client["y"].astype(np.float64),
                w.copy(),
                v.copy(),
            )
            for _ in range(3):
                h = np.tanh(x @ (base + cw))
                error = h @ cv - y
                seen.append((np.sum(error**2), len(y)))
                grad_v = 2 * h.T @ error / len(y)
                grad_w = x.T @ (2 * np.outer(error, cv) * (1 - h**2)) / len(y)
                cw, cv = cw - 0.05 * grad_w, cv - 0.05 * grad_v
            ends.append((len(y), cw, cv))
        n = sum(k for k, _, _ in ends)
        w, v = (sum(end[0] * end[i] for end in ends) / n for i in (1, 2))
        losses.append(sum(s for s, _ in seen) / sum(c for _, c in seen))
    np.testing.assert_allclose(state.delta["w"], w, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(state.delta["v"], v, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    assert metrics["examples"].tolist() == [sum(SIZES)] * 2


@pytest.mark.parametrize("uplink", [None, lossy])
@pytest.mark.parametrize(
    ("devices", "block_size"),
    [(1, 2), (1, 6), (2, 1), (2, 3), (8, 1), (4, 2)],
    ids=lambda value: str(value),
)
def test_layouts_agree(devices, block_size, uplink):
    make = (lambda: None) if uplink is None else uplink
    reference, expected = simulate(devices=1, block_size=1, uplink=make())
    state, metrics = simulate(devices=devices, block_size=block_size, uplink=make())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        reference.delta,
        state.delta,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        reference.carry.uplinks,
        state.carry.uplinks,
    )
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)


def test_fused_rounds_equal_single_ones_bit_for_bit():
    fused, together = simulate(4, uplink=lossy())
    clients = make_clients()
    delta, backbone = make_trees()
    algorithm = ffm.fedavg(
        ffm.Task(mlp_loss),
        optax.sgd(0.05, momentum=0.9),
        optax.sgd(0.7),
        epochs=2,
        batch_size=4,
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        backbone=backbone,
        uplink=lossy(),
        cohort_size=6,
        seed=3,
        devices=1,
    )
    state, losses = simulator.init(delta), []
    for _ in range(4):
        state, metrics = simulator.run(state, 1)
        losses.append(metrics["loss"][0])
    jax.tree.map(np.testing.assert_array_equal, fused.carry, state.carry)
    np.testing.assert_array_equal(together["loss"], losses)


def test_same_seed_same_bits_other_seed_other_run():
    first, _ = simulate()
    again, _ = simulate()
    other, _ = simulate(seed=4)
    jax.tree.map(np.testing.assert_array_equal, first.carry, again.carry)
    assert not np.array_equal(first.delta["w"], other.delta["w"])


def test_more_rounds_than_a_dispatch_holds():
    from fedjax_fm.engine.programs import ROUNDS_PER_DISPATCH

    state, metrics = simulate(
        ROUNDS_PER_DISPATCH + 3, local={"local_steps": 1, "batch_size": 2}
    )
    assert state.round == ROUNDS_PER_DISPATCH + 3
    assert len(metrics["loss"]) == ROUNDS_PER_DISPATCH + 3


def test_empty_slots_full_of_nan_change_no_bit():
    """Slots that a cohort does not fill read client 0; here client 0 is full of NaN and
    not in the cohort.
    """
    ids = jnp.array([5, 2, 0, 0], jnp.int32)
    two = Sampler(
        init=tuple, draw=lambda state, key: (ids, jnp.int32(2), state), capacity=4
    )
    clean = make_clients()
    dirty = make_clients()
    dirty[0] = {name: np.full_like(array, np.nan) for name, array in dirty[0].items()}
    how = {"sampler": two, "devices": 2, "block_size": 2, "uplink": lossy()}
    a, expected = simulate(clients=clean, **how)
    b, metrics = simulate(clients=dirty, **how)
    jax.tree.map(np.testing.assert_array_equal, a.carry, b.carry)
    assert metrics["clients"].tolist() == [2, 2, 2]
    assert metrics["uplink_bytes"].tolist() == expected["uplink_bytes"].tolist()


def test_cohort_order_changes_only_float_rounding():
    def fixed(order):
        ids = jnp.array(order, jnp.int32)
        return Sampler(
            init=tuple,
            draw=lambda state, key: (ids, jnp.int32(len(order)), state),
            capacity=len(order),
        )

    a, _ = simulate(sampler=fixed([1, 4, 6, 2]), uplink=lossy())
    b, _ = simulate(sampler=fixed([6, 2, 1, 4]), uplink=lossy())
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        a.carry,
        b.carry,
    )


def test_empty_clients_take_no_part():
    clients = make_clients(sizes=(4, 0, 6))
    state, metrics = simulate(clients=clients, cohort_size=3, uplink=lossy())
    without, expected = simulate(
        clients=clients,
        cohort_size=3,
        uplink=lossy(),
        sampler=Sampler(
            init=tuple,
            draw=lambda s, k: (jnp.array([0, 2], jnp.int32), jnp.int32(2), s),
            capacity=2,
        ),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        state.delta,
        without.delta,
    )
    assert metrics["clients"].tolist() == [2, 2, 2]
    assert metrics["uplink_bytes"].tolist() == expected["uplink_bytes"].tolist()
