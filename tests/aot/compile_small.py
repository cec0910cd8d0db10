"""Compiles rounds of a small problem for machines that are not here.

`python compile_small.py TOPOLOGY CASE ...`, in a process of its own: which platform JAX
starts is decided once. Prints one JSON object: by case, the report.
"""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.append(str(Path(sys.prefix) / "aot"))  # the compilers, apart from the rest

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import aot, channels
from fedjax_fm.aot.command import FAST
from fedjax_fm.models.splash import Texts, splash


def loss(delta, backbone, batch, key):
    hidden = jnp.tanh(batch["x"] @ delta["w"])
    return jnp.mean(hidden @ backbone["w"], axis=1) ** 2, {}


def in_blocks(delta, backbone, batch, key):
    """As `loss`, with attention between the 4 rows of a batch, as if they were tokens."""
    tokens = (batch["x"] @ delta["w"])[None, :, None, :]
    texts = Texts(jnp.ones(tokens.shape[:2], jnp.int32))
    attended = splash(tokens, tokens, tokens, texts)[0, :, 0]
    return jnp.mean(attended @ backbone["w"], axis=1) ** 2, {}


def small(target, *, cohort=16, loss=loss, method=ffm.fedavg, steps=1, **how):
    """Rounds of a product of two matrices, 16 KB of them trained."""
    clients = max(cohort, 16)
    x = np.broadcast_to(np.zeros((), np.float32), (4 * clients, 512))
    simulator = ffm.Simulator(
        method(ffm.Task(loss), optax.sgd(0.1), local_steps=steps, batch_size=4),
        ffm.Population.from_arrays({"x": x}, 4 * np.arange(clients + 1)),
        backbone={"w": jax.ShapeDtypeStruct((8, 64), np.float32)},
        cohort_size=cohort,
        target=target,
        compiler_options=FAST if target.platform == "tpu" else {},
        **how,
    )
    return simulator.compile({"w": jax.ShapeDtypeStruct((512, 8), jnp.float32)})


CASES = {
    "plain": {},
    "large_cohort": {"cohort": 512},
    "top_k": {"uplink": channels.top_k(0.1)},
    "error_feedback": {"uplink": channels.error_feedback(channels.top_k(0.1))},
    "states_of_many": {
        "uplink": channels.error_feedback(channels.top_k(0.1)),
        "cohort": 512,
    },
    "downlink": {"downlink": channels.top_k(0.1)},
    "splash": {"loss": in_blocks},
    "model": {"uplink": channels.top_k(0.1), "model_parallel": 2},
    "model_and_downlink": {"downlink": channels.top_k(0.1), "model_parallel": 2},
}


def main(name, cases):
    target = aot.topology(name)
    found = {case: aot.report(small(target, **CASES[case])).as_json() for case in cases}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
