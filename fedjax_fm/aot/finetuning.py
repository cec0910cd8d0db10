"""Rounds of fine-tuning a known architecture, by shape: no weight is read or made."""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import nnx

from fedjax_fm import models, peft, tasks
from fedjax_fm import wire as wires
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.engine.simulator import Simulator
from fedjax_fm.engine.target import Target
from fedjax_fm.models.low_bits import FORMATS
from fedjax_fm.population.population import Population
from fedjax_fm.types import Channel, Task, Tree


@dataclass(frozen=True)
class Setup:
    """A round of fine-tuning.

    Attributes:
      model: an architecture, a hub id, or a folder with a config.json.
      peft: a key of `wire.METHODS`.
      options: of that method.
      classes: of a classifier; None: a language model.
      cohort: clients a round.
      population: clients in all.
      examples: of each client.
      batch: examples of a local step.
      length: tokens of an example.
      steps: local steps.
      dtype: of weights and activations.
      frozen: "dense", or the few bits of `models.quantize`.
      remat: what layers keep for their gradients, see `tasks.remat`.
      attention: who computes it, see `tasks.attention`.
      split: what devices of `model_parallel` do: products in parts ("tensor"), or rows
        of a batch each ("rows"), see `tasks.rows_over_model`.
    """

    model: str
    peft: str = "lora"
    options: wires.Options = field(default_factory=wires.Options)
    classes: int | None = None
    cohort: int = 64
    population: int = 256
    examples: int = 16
    batch: int = 8
    length: int = 512
    steps: int = 1
    dtype: str = "bfloat16"
    frozen: str = "dense"
    remat: Literal["none", "dots", "full"] = "dots"
    attention: Literal["xla", "cudnn", "splash"] = "xla"
    split: Literal["tensor", "rows"] = "tensor"


def simulator(
    setup: Setup,
    target: Target,
    *,
    weights: bool = False,
    uplink: Channel | None = None,
    downlink: Channel | None = None,
    **how: Any,
) -> tuple[Simulator, Tree]:
    """A simulator of FedAvg with Adam at the server, and the shapes of what is trained.

    Args:
      setup: what is fine-tuned.
      target: for what machines.
      weights: makes random weights, for rounds that run; else there are shapes alone.
      uplink, downlink: channels.
      **how: more arguments of `Simulator`.

    Returns:
      (simulator, delta), for `simulator.compile(delta)`, or `init` with weights.

    Raises:
      UsageError: an unknown model.
      ValueError: a method that does not fit the model; bits that it cannot have.

    Example:
      >>> from fedjax_fm.engine.target import this_machine
      >>> setup = Setup("minilm-l6", classes=2, cohort=4, population=8, length=16)
      >>> rounds, delta = simulator(setup, this_machine())
      >>> sum(leaf.size for leaf in jax.tree.leaves(delta))
      74498
    """
    adapted = _adapted(setup, weights)
    rounds = Simulator(
        fedavg(
            _task(setup, adapted),
            optax.sgd(1e-2),
            optax.adam(1e-3),
            local_steps=setup.steps,
            batch_size=setup.batch,
        ),
        _population(setup),
        backbone=adapted.backbone,
        cohort_size=setup.cohort,
        uplink=uplink,
        downlink=downlink,
        target=target,
        **how,
    )
    return rounds, adapted.delta


def _adapted(setup: Setup, weights: bool) -> peft.Adapted:
    """The model in its parts, with random weights or by shape."""
    fields = {**wires.fields_of(setup.model), "num_labels": setup.classes}
    method = wires.METHODS[setup.peft](fields, setup.options)
    structure: list[nnx.GraphDef] = []

    def split() -> tuple[Tree, Tree]:
        built = models.from_config(fields, num_labels=setup.classes, dtype=setup.dtype)
        if setup.frozen in FORMATS:
            built = models.quantize(built, setup.frozen)
        graphdef, delta, backbone = peft.apply(built, method)
        structure.append(graphdef)
        return delta, backbone

    delta, backbone = jax.jit(split)() if weights else jax.eval_shape(split)
    return peft.Adapted(graphdef=structure[0], delta=delta, backbone=backbone)


def _task(setup: Setup, adapted: peft.Adapted) -> Task:
    make = tasks.language_modeling if setup.classes is None else tasks.classification
    task = tasks.remat(make(adapted), setup.remat)
    task = tasks.attention(task, setup.attention)
    return tasks.rows_over_model(task) if setup.split == "rows" else task


def _population(setup: Setup) -> Population:
    """Clients alike in size; all their numbers are one zero in memory."""
    n = setup.population * setup.examples
    tokens = np.broadcast_to(np.zeros((), np.int32), (n, setup.length))
    arrays = {"input_ids": tokens, "attention_mask": tokens}
    if setup.classes is None:
        arrays["labels"] = tokens
    else:
        arrays["label"] = tokens[:, 0]
    offsets = setup.examples * np.arange(setup.population + 1)
    return Population.from_arrays(arrays, offsets)
