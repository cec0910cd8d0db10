"""A small multi-layer problem with a backbone, ragged clients and every knob of the simulator."""

import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.types import Sampler

SIZES = (7, 1, 12, 5, 3, 9, 12, 4)


def make_clients(seed=0, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return [
        {
            "x": rng.normal(size=(n, 3)).astype(np.float32),
            "y": rng.normal(size=n).astype(np.float32),
        }
        for n in sizes
    ]


def mlp_loss(delta, backbone, batch, key):
    hidden = jnp.tanh(batch["x"] @ (backbone["w"] + delta["w"]))
    return (hidden @ delta["v"] - batch["y"]) ** 2, {}


def make_trees(seed=1):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {"w": draw(3, 4), "v": draw(4)}, {"w": draw(3, 4)}


def everyone(n):
    ids = jnp.arange(n, dtype=jnp.int32)
    return Sampler(
        init=tuple, draw=lambda state, key: (ids, jnp.int32(n), state), capacity=n
    )


def simulate(rounds=3, *, clients=None, uplink=None, local=None, **how):
    clients = clients or make_clients()
    delta, backbone = make_trees()
    local = local or {"epochs": 2, "batch_size": 4}
    algorithm = ffm.fedavg(
        ffm.Task(mlp_loss), optax.sgd(0.05, momentum=0.9), optax.sgd(0.7), **local
    )
    how = {"cohort_size": 6, "seed": 3, "devices": 1} | how
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        backbone=backbone,
        uplink=uplink,
        **how,
    )
    return simulator.run(simulator.init(delta), rounds)


def lossy():
    return channels.error_feedback(
        channels.chain(channels.top_k(0.3), channels.quantize(4))
    )
