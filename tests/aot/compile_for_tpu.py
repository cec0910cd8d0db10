"""Compiles the rounds of a small problem for eight chips of a TPU that is not here.

`python compile_for_tpu.py CASES` with the package libtpu; prints one JSON object: by
case, the kernels of ours that the compiled program calls.
"""

import functools
import json
import os
import sys

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5e-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process dies of a lock file
}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.engine.devices import CLIENTS, MODEL
from fedjax_fm.engine.programs import fused

CASES = {
    "top_k": (1, {"uplink": channels.top_k(0.1)}),
    "error_feedback": (1, {"uplink": channels.error_feedback(channels.top_k(0.1))}),
    "downlink": (1, {"downlink": channels.top_k(0.1)}),
    "model": (2, {"uplink": channels.top_k(0.1)}),
    "model_and_downlink": (2, {"downlink": channels.top_k(0.1)}),
}


def loss(delta, backbone, batch, key):
    hidden = jnp.tanh(batch["x"] @ delta["w"])
    return jnp.mean(hidden @ backbone["w"], axis=1) ** 2, {}


def compiled(model, how):
    """The rounds of 16 clients on a mesh of [8 / model, model] chips."""
    x = np.zeros((64, 512), np.float32)
    simulator = ffm.Simulator(
        ffm.fedavg(ffm.Task(loss), optax.sgd(0.1), local_steps=1, batch_size=4),
        ffm.Population.from_arrays({"x": x}, 4 * np.arange(17)),
        backbone={"w": np.ones((8, 8), np.float32)},
        cohort_size=8,
        devices=1,
        block_size=1,
        **how,
    )
    state = simulator.init({"w": jnp.ones((512, 8))}).carry
    chips = topologies.get_topology_desc("v5e:2x4", "tpu").devices
    grid = np.array(chips).reshape(-1, model)
    mesh = Mesh(grid, (CLIENTS, MODEL), axis_types=(AxisType.Auto,) * 2)
    plan = simulator.engine.plan._replace(n_devices=8 // model, n_blocks=model)
    engine = simulator.engine._replace(mesh=mesh, plan=plan)
    everywhere = NamedSharding(mesh, P())

    def shape(leaf):
        sizes = jnp.shape(leaf)
        return jax.ShapeDtypeStruct(sizes, leaf.dtype, sharding=everywhere)

    operands = (state, simulator.backbone, simulator.data, jnp.int32(1), simulator.key)
    rounds = jax.jit(functools.partial(fused, engine, simulator.sampler))
    traced = rounds.trace(*jax.tree.map(shape, operands))
    lowered = traced.lower(lowering_platforms=("tpu",))
    return lowered.compile({"exec_time_optimization_effort": -1.0})


def main(names):
    found = {}
    for name in names:
        model, how = CASES[name]
        with_tpu = jax.default_backend
        # Which kernel is taken is decided by this while a program is traced.
        jax.default_backend = lambda: "tpu"
        try:
            found[name] = compiled(model, how).as_text().count("tpu_custom_call")
        finally:
            jax.default_backend = with_tpu
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
