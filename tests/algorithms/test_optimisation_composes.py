"""Methods of federated optimisation with bf16, a lossy wire both ways, drop-outs, stragglers
and a schedule over rounds: every one of them, all at once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels

RNG = np.random.default_rng(0)
DATA = [
    {
        "x": RNG.normal(size=(n, 3)).astype(np.float32),
        "y": RNG.normal(size=n).astype(np.float32),
    }
    for n in (4, 1, 6, 3, 5)
]
START = {
    "w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.bfloat16),
    "v": jnp.asarray(RNG.normal(size=4), jnp.float32),
}
WALK = {"local_steps": 4, "batch_size": 2}


def features(delta, backbone, batch, key):
    return jnp.tanh(batch["x"] @ delta["w"])


def loss(delta, backbone, batch, key):
    return (features(delta, backbone, batch, key) @ delta["v"] - batch["y"]) ** 2, {}


def rate_of(round_index):
    return optax.sgd(0.05 / (1 + round_index), momentum=0.5)


TASK = ffm.Task(loss)
MORE = {
    "fedprox": {"mu": 0.1, "implicit_rate": 0.05},
    "streaming_diloco": {"fragments": 2, "delay": 1},
    "moon": {"features": features},
    "scaffold": {"option": "I"},
}
METHODS = (
    *("scaffold", "feddyn", "mime", "diloco", "streaming_diloco", "moon", "fednova"),
    *("qfedavg", "fedprox", "fedprox_adaptive", "fedsgd", "fedavgm", "fedadam"),
    *("fedyogi", "fedadagrad", "mimelite", "power_of_choice"),
)
ALWAYS = ("scaffold", "streaming_diloco")


def made(name):
    if name == "power_of_choice":
        scaffold = algorithms.scaffold(TASK, rate_of, **WALK)
        return algorithms.power_of_choice(scaffold, TASK, cohort_size=2, batch_size=2)
    return getattr(algorithms, name)(TASK, rate_of, **MORE.get(name, {}), **WALK)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow)
        for name in METHODS
    ],
)
def test_all_at_once(name):
    behaviour = ffm.Behaviour(
        most_steps=lambda id, round, key: jnp.where(id == 2, 1, 9),
        drops=lambda id, round, key: (id + round) % 4 == 3,
    )
    simulator = ffm.Simulator(
        made(name),
        ffm.Population.from_clients(DATA),
        cohort_size=4,
        uplink=channels.error_feedback(channels.quantize(bits=8)),
        downlink=channels.cast("bfloat16"),
        behaviour=behaviour,
        devices=1,
    )
    state, metrics = simulator.run(simulator.init(START), 4)
    assert jax.tree.map(jnp.shape, state.delta) == jax.tree.map(jnp.shape, START)
    assert state.delta["w"].dtype == jnp.bfloat16
    moved = np.abs(np.asarray(state.delta["v"]) - np.asarray(START["v"]))
    assert np.isfinite(moved).all()
    assert (moved > 1e-4).any()
    assert np.isfinite(metrics["loss"]).all()
