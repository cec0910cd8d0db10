"""The one attention of all families, over a backbone that is split."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm.models.attention import attend

WIDTH = 12


def simulated(heads, **how):
    rng = np.random.default_rng(0)
    backbone = {"w": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)}
    delta = {"w": np.zeros((WIDTH, WIDTH), np.float32)}
    clients = [
        {"x": rng.normal(size=(4, 5, WIDTH)).astype(np.float32)} for _ in range(6)
    ]

    def loss(delta, backbone, batch, key):
        hidden = batch["x"] @ (backbone["w"] + delta["w"])
        return jnp.mean(attend(hidden, hidden, batch["x"], heads), axis=(1, 2)) ** 2, {}

    simulator = ffm.Simulator(
        ffm.fedavg(ffm.Task(loss), optax.sgd(0.5), local_steps=2, batch_size=2),
        ffm.Population.from_clients(clients),
        backbone=backbone,
        cohort_size=4,
        **how,
    )
    state, _ = simulator.run(simulator.init(delta), 2)
    return np.asarray(state.delta["w"])


def test_heads_that_do_not_divide_over_a_split_backbone_are_refused():
    whole = simulated(4, devices=1)
    split = simulated(4, devices=4, model_parallel=2)
    np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="got model_parallel=2 and 3 heads"):
        simulated(3, devices=4, model_parallel=2)
    assert simulated(3, devices=2).shape == whole.shape  # clients alone
