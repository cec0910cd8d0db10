"""Local only equals training each client alone, and sends nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm.algorithms import local_only


def test_clients_train_alone_and_keep_their_own():
    clients = [
        {"a": np.full(n, value, np.float32)}
        for n, value in ((3, 1.0), (5, -2.0), (2, 4.0))
    ]

    def loss(delta, backbone, batch, key):
        return 0.5 * (delta["w"] - batch["a"]) ** 2, {}

    algorithm = local_only(ffm.Task(loss), optax.sgd(0.1), local_steps=4, batch_size=8)
    simulator = ffm.Simulator(
        algorithm, ffm.Population.from_clients(clients), cohort_size=3, devices=2
    )
    state, metrics = simulator.run(simulator.init({"w": jnp.float32(0.5)}), 3)
    expected = [a + 0.9**12 * (0.5 - a) for a in (1.0, -2.0, 4.0)]
    np.testing.assert_allclose(state.carry.clients["w"], expected, rtol=1e-5)
    assert float(state.delta["w"]) == 0.5
    assert (
        metrics["uplink_bytes"].tolist()
        == metrics["downlink_bytes"].tolist()
        == [0, 0, 0]
    )
    # Every client's loss counts by its number of examples: the first step sees the common start.
    first = (
        sum(
            n * 0.5 * (0.5 - a) ** 2 * 0.81**i
            for n, a in ((3, 1.0), (5, -2.0), (2, 4.0))
            for i in range(4)
        )
        / 40
    )
    np.testing.assert_allclose(metrics["loss"][0], first, rtol=1e-5)


def test_only_the_cohort_moves():
    clients = [{"a": np.ones(2, np.float32)} for _ in range(6)]
    algorithm = local_only(
        ffm.Task(lambda d, b, batch, key: ((d - batch["a"]) ** 2, {})),
        optax.sgd(0.1),
        epochs=1,
        batch_size=2,
    )
    simulator = ffm.Simulator(
        algorithm, ffm.Population.from_clients(clients), cohort_size=2, devices=1
    )
    state, _ = simulator.run(simulator.init(jnp.zeros(())), 1)
    assert int(jnp.sum(state.carry.clients != 0)) == 2
    assert jax.tree.leaves(state.carry.uplinks) == []
