"""The methods that make a model smaller, on one model: what `bench.sparsity` measures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import algorithms, models, peft, sparsity, tasks
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Algorithm, Task

MASKED, SMALLER, DENSE = "masked, not faster", "smaller", "dense"
STACKED = r"encoder\.layer"
KERNELS = rf"{STACKED}\..*kernel$"


@dataclass(frozen=True)
class Sizes:
    """A BERT, and what a client computes in a round: one step.

    Attributes:
      layers, hidden, heads: of the encoder; 4 times as wide in the feed-forward network.
      batch: examples.
      length: tokens of one.
      density: share of the encoder's kernels that stays.
    """

    layers: int = 6
    hidden: int = 384
    heads: int = 12
    batch: int = 8
    length: int = 32
    density: float = 0.25

    def model(self) -> Any:
        """A classifier of these sizes, of random weights."""
        config = models.BertConfig(
            vocab_size=1000,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.hidden,
        )
        return models.BertForSequenceClassification(config, 2, "mean", nnx.Rngs(0))

    def population(self) -> ffm.Population:
        """One client with one batch of random tokens."""
        rng = np.random.default_rng(0)
        ids = rng.integers(0, 1000, (self.batch, self.length)).astype(np.int32)
        labels = rng.integers(0, 2, self.batch).astype(np.int32)
        rows = {"input_ids": ids, "attention_mask": np.ones_like(ids), "label": labels}
        return ffm.Population.from_clients([rows])


class Case(NamedTuple):
    """A method on a model.

    Attributes:
      method: of the round.
      delta: the trainable tree.
      backbone: what is frozen.
      model: `(state, simulator) -> ` the whole model after a run, for what follows it.
    """

    method: Algorithm
    delta: Any
    backbone: Any
    model: Callable[[Any, Any], Any]


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      name: of the method.
      kind: DENSE, MASKED or SMALLER.
      make: `(sizes) -> Case`.
    """

    name: str
    kind: str
    make: Callable[[Sizes], Case]


def is_trained(path: str) -> bool:
    """Whether a parameter is: the encoder's layers and the head, not the embeddings.

    Args:
      path: of it, dotted.
    """
    return "encoder.layer" in path or "classifier" in path


def adapted(model: Any) -> peft.Adapted:
    """The model with what is trained of it.

    Args:
      model: a classifier.
    """
    return peft.apply(model, peft.by_path(is_trained))


def case(
    model: Any, method: Callable[..., Algorithm], sizes: Sizes, **how: Any
) -> Case:
    """A method on a model, one step a round.

    Args:
      model: a classifier.
      method: its factory.
      sizes: say how many examples a step has.
      **how: more settings.
    """
    found = adapted(model)
    task = tasks.classification(found)
    walk: dict[str, Any] = {"local_steps": 1, "batch_size": sizes.batch}
    made = method(task, optax.sgd(1e-3), **walk, **how)

    def whole(state: Any, simulator: Any) -> Any:
        return found.model(*simulator.model(state))

    return Case(method=made, delta=found.delta, backbone=found.backbone, model=whole)


def chosen_masks(model: Any, density: float) -> Flat:
    """Masks of the largest magnitudes of each layer.

    Args:
      model: a classifier.
      density: share that stays.
    """
    layers = sparsity.Layers(KERNELS, STACKED)
    weights = layers.weights(adapted(model).delta)
    return sparsity.top_masks(sparsity.magnitude(weights), density, layers)


def _dense(sizes: Sizes) -> Case:
    return case(sizes.model(), ffm.fedavg, sizes)


def _at_once(sizes: Sizes) -> dict[str, Any]:
    """The schedule of a method that prunes by rounds, at its end after the first."""
    sparse = 1 - sizes.density
    schedule = {"initial_sparsity": sparse, "final_sparsity": sparse, "last": 1}
    return {**schedule, "pruned": KERNELS, "stacked": STACKED}


def _gradual(sizes: Sizes) -> Case:
    how = _at_once(sizes)
    return case(sizes.model(), algorithms.gradual_pruning, sizes, **how)


def _lottery(sizes: Sizes) -> Case:
    how: dict[str, Any] = {
        "levels": 1,
        "rounds_per_level": 1,
        "rate": 1 - sizes.density,
    }
    how |= {"pruned": KERNELS, "stacked": STACKED}
    return case(sizes.model(), algorithms.lottery_ticket, sizes, **how)


def _prunefl(sizes: Sizes) -> Case:
    model = sizes.model()
    time = algorithms.RoundTime(constant=1.0, entry=1e-6)
    how: dict[str, Any] = {
        "time": time,
        "masks": chosen_masks(model, sizes.density),
        "every": 50,
    }
    how |= {"pruned": KERNELS, "stacked": STACKED}
    return case(model, algorithms.prunefl, sizes, **how)


def _lotteryfl(sizes: Sizes) -> Case:
    how: dict[str, Any] = {
        "rate": 1 - sizes.density,
        "target_density": sizes.density + 1e-6,
    }
    how |= {"threshold": -1.0, "pruned": KERNELS, "stacked": STACKED}
    return case(sizes.model(), algorithms.lotteryfl, sizes, **how)


def _fedtiny(sizes: Sizes) -> Case:
    model = sizes.model()
    masks = chosen_masks(model, sizes.density)
    return case(model, algorithms.fedtiny, sizes, masks=masks, every=50)


def _movement(sizes: Sizes) -> Case:
    how = _at_once(sizes)
    return case(sizes.model(), algorithms.movement_pruning, sizes, **how)


def _soft(sizes: Sizes) -> Case:
    how: dict[str, Any] = {"penalty": 0.1, "pruned": KERNELS, "stacked": STACKED}
    return case(sizes.model(), algorithms.soft_movement_pruning, sizes, **how)


def blocks(sizes: Sizes) -> Case:
    """Movement pruning of heads and units.

    Args:
      sizes: of the model.
    """
    model, sparse = sizes.model(), 1 - sizes.density
    how: dict[str, Any] = {
        "initial_sparsity": sparse,
        "final_sparsity": sparse,
        "last": 1,
    }
    how |= {"blocks": models.unit_blocks(model), "stacked": STACKED}
    return case(model, algorithms.movement_pruning, sizes, **how)


def shrunk(sizes: Sizes) -> Case:
    """What `blocks` leaves after two rounds, without the heads and units that are gone.

    Args:
      sizes: of the model.
    """
    made = blocks(sizes)
    how: dict[str, Any] = {"backbone": made.backbone, "cohort_size": 1, "devices": 1}
    simulator = ffm.Simulator(made.method, sizes.population(), **how)
    state, _ = simulator.run(simulator.init(made.delta), 2)
    model = made.model(state, simulator)
    weights = sparsity.Layers(KERNELS, STACKED).weights(adapted(model).delta)
    small = models.shrunk(model, sparsity.nonzero_masks(weights))
    return case(small, ffm.fedavg, sizes)


def _student(sizes: Sizes) -> tuple[Any, Any]:
    """(the whole model, one of every second layer)."""
    model = sizes.model()
    return model, peft.emulated(model, first=1, last=1, dropped=0.5).model


def _halved(sizes: Sizes) -> Case:
    return case(_student(sizes)[1], ffm.fedavg, sizes)


def _distilled(sizes: Sizes) -> Case:
    teacher, small = _student(sizes)
    graphdef, weights = nnx.split(teacher)
    found = adapted(small)

    def logits(model: Any, batch: dict[str, jax.Array]) -> tasks.Outputs:
        found = model(batch["input_ids"], batch["attention_mask"])
        return tasks.Outputs(found.astype(jnp.float32))

    def of_student(delta, backbone, batch, key):
        return logits(found.model(delta, backbone["student"]), batch)

    def of_teacher(backbone, batch):
        return logits(nnx.merge(graphdef, backbone["teacher"]), batch)

    task: Task = tasks.distilled(of_student, of_teacher)
    walk: dict[str, Any] = {"local_steps": 1, "batch_size": sizes.batch}
    return Case(
        method=ffm.fedavg(task, optax.sgd(1e-3), **walk),
        delta=found.delta,
        backbone={"student": found.backbone, "teacher": weights},
        model=lambda state, simulator: small,
    )


ROWS = (
    Row("FedAvg", DENSE, _dense),
    Row("gradual pruning", MASKED, _gradual),
    Row("lottery ticket", MASKED, _lottery),
    Row("PruneFL", MASKED, _prunefl),
    Row("LotteryFL", MASKED, _lotteryfl),
    Row("FedTiny", MASKED, _fedtiny),
    Row("movement pruning, entries", MASKED, _movement),
    Row("soft movement pruning, at its start", MASKED, _soft),
    Row("movement pruning, heads and units", MASKED, blocks),
    Row("the same, taken out by models.shrunk", SMALLER, shrunk),
    Row("every second middle layer dropped", SMALLER, _halved),
    Row("the same, taught by the whole model", SMALLER, _distilled),
)
