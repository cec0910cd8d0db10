"""The ways to send less: what compresses an upload, or makes rounds fewer."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels, study
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.experiments.joint.parts import PARTS
from fedjax_fm.types import Algorithm, Channel, Task

STEPS = 4  # local ones a round, unless a way takes more
MIXED = (2, 4, 8, 16)  # ranks, a quarter of the clients each


class Way(NamedTuple):
    """A way to send less.

    Attributes:
      label: on pages.
      local_steps: of a client in a round.
      of: the parts that it is for; (): all whose uploads have something to compress.
    """

    label: str
    local_steps: int = STEPS
    of: tuple[str, ...] = ()


WAYS = {
    "plain": Way("uncompressed"),
    "top_k": Way("top 5 %"),
    "bits_4": Way("4 bits"),
    "sign": Way("signs"),
    "eden": Way("EDEN, 1 bit"),
    "masks": Way("masks, a quarter"),
    "diloco_4": Way("DiLoCo, 4 steps"),
    "diloco_16": Way("DiLoCo, 16 steps", local_steps=16),
    "mixed": Way("mixed ranks", of=("lora",)),
    "long": Way("16 steps", local_steps=16, of=("zero",)),
}


def pairs() -> Iterator[tuple[str, str]]:
    """(part, way) of each arm but the controls."""
    for part in PARTS:
        for way in WAYS:
            if part != "head" and is_pair(part, way):
                yield part, way


def is_pair(part: str, way: str) -> bool:
    """Whether a way is for a part: a few scalars have nothing to compress.

    Args:
      part: a key of `PARTS`.
      way: a key of `WAYS`.
    """
    if part == "zero":
        return way in ("plain", "long")
    return not WAYS[way].of or part in WAYS[way].of


def algorithm_of(run: study.Run, task: Task, way: str, rate: Any) -> Algorithm:
    """The method of a pair.

    Args:
      run: of the arm.
      task: of its part.
      way: a key of `WAYS`.
      rate: of Adam, a number or traced.
    """
    config, adam = run.config, optax.adam(rate)
    walk = {"local_steps": WAYS[way].local_steps, "batch_size": config.batch_size}
    if way.startswith("diloco"):
        return algorithms.diloco(task, adam, **walk)
    if way == "masks":
        sparse = {"density_down": config.density, "density_up": config.density}
        return algorithms.flasc(task, adam, optax.sgd(1.0), **sparse, **walk)
    if way == "mixed":
        return lora_rules.flexlora(task, adam, ranks=ranks_of(config), **walk)
    return ffm.fedavg(task, adam, **walk)


def by_evaluations(run: study.Run, task: Task, way: str, rate: Any) -> Algorithm:
    """FedKSeed, which never takes a gradient.

    Args:
      run: of the arm.
      task: of the whole layer.
      way: a key of `WAYS`.
      rate: of its steps.
    """
    steps, batch_size = WAYS[way].local_steps, run.config.batch_size
    walk = {"local_steps": steps, "batch_size": batch_size}
    return algorithms.fedkseed(task, rate, **walk)


def uplink_of(config: Any, way: str) -> Channel | None:
    """What shortens an upload; None where nothing does.

    Args:
      config: of the study.
      way: a key of `WAYS`.
    """
    if way == "top_k":
        return channels.error_feedback(channels.top_k(config.kept))
    if way == "bits_4":
        return channels.quantize(4)
    if way == "sign":
        return channels.error_feedback(channels.sign())
    if way == "eden":
        return channels.eden(1)
    return None


def ranks_of(config: Any) -> np.ndarray:
    """The mixed rank of every client.

    Args:
      config: of the study.
    """
    return np.resize(MIXED, config.clients)
