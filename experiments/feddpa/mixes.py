"""How much the private adapter counts, for every sentence."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from fedjax_fm import study
from fedjax_fm.experiments.shared.sentences import Arrays
from fedjax_fm.peft.dual_lora import instance_mix

INPUTS = ("input_ids", "attention_mask")


@functools.partial(jax.jit, static_argnums=0)
def features(graphdef, private, backbone, ids, mask):
    """Mean hidden states under the private adapter, f32[B, d]."""
    return nnx.merge(graphdef, private, backbone).features(ids, mask)


def by_instance(
    run: study.Run, found: study.Simulated, k: int, rows: Arrays
) -> np.ndarray:
    """The mix for each sentence, by its likeness to training sentences of the client.

    Args:
      run: of the arm.
      found: the trained run.
      k: the client.
      rows: test sentences.

    Returns:
      f32[n].
    """
    config, graphdef = run.config, run.data.adapted.graphdef
    adapters, backbone = found.model(k)
    train = run.data.clients[k].train
    random = np.random.default_rng([run.seed, k])
    some = random.choice(len(train["label"]), config.instances, replace=False)
    read = functools.partial(features, graphdef, adapters.private, backbone)
    query = read(*(rows[name] for name in INPUTS))
    local = read(*(train[name][some] for name in INPUTS))
    return np.asarray(instance_mix(query, local, config.omega_max, config.omega_weighs))


def constant(mix: float) -> Callable:
    """The same mix for every sentence, with the arguments of `by_instance`."""

    def same(
        run: study.Run, found: study.Simulated, k: int, rows: Arrays
    ) -> np.ndarray:
        return np.full(len(rows["label"]), mix, np.float32)

    return same


SHARED, HALF, ALONE = constant(0.0), constant(0.5), constant(1.0)
