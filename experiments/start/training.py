"""Full tuning, from the weights of a checkpoint or from random ones."""

from dataclasses import replace

import jax
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft, study
from fedjax_fm.experiments.gate.tasks import read
from fedjax_fm.experiments.shared.gated import Dealt
from fedjax_fm.types import Tree


def begun(run: study.Run, start: str, dealt: Dealt) -> peft.Adapted:
    """The first layers of the model, all of which is trained.

    Args:
      run: its seed draws the head and random weights.
      start: "pretrained", or "random": nothing of the checkpoint but its sizes.
      dealt: has the pretrained model.
    """
    whole, rngs = dealt.whole, nnx.Rngs(run.seed)
    config = replace(whole.config, num_hidden_layers=run.config.layers)
    classes = read(run.config.task).classes
    model = models.BertForTokenClassification(config, classes, rngs)
    if start == "pretrained":
        nnx.update(model, first_layers(nnx.state(whole), nnx.state(model)))
    return peft.apply(model, peft.full(), jax.random.key(run.seed))


def first_layers(whole: Tree, few: Tree) -> Tree:
    """Weights of the first layers, which are stacked on the first axis.

    Args:
      whole: of all layers.
      few: of a model with fewer layers.

    Returns:
      As `few`, with the values of `whole`.
    """
    return jax.tree.map(lambda own, given: given[: len(own)], few, whole)


def tuned(
    run: study.Run, start: str, dealt: str, shuffle: bool = False
) -> dict[str, float]:
    """All rounds of FedAvg.

    Args:
      run: of the arm.
      start: as for `begun`.
      dealt: "iid" or "skewed".
      shuffle: whether tags are permuted among all clients.
    """
    config, data = run.config, run.data[dealt]
    adapted = begun(run, start, data)
    task, adam = data.task(adapted), optax.adam(run["learning_rate"])
    clients = data.with_shuffled_labels(run.seed) if shuffle else data.clients
    found = run.simulate(
        ffm.fedavg(task, adam, **study.walk(config)),
        clients,
        adapted,
        cohort_size=clients.n_clients,
        task=task,
        test=data.test,
        every=run.rounds if run.is_tuning else config.every,
        **data.scoring,
    )
    return {"accuracy": found.scores["accuracy"]}


def untrained(run: study.Run) -> dict[str, float]:
    """Random weights."""
    data = run.data["skewed"]
    adapted = begun(run, "random", data)
    task, parts = data.task(adapted), (adapted.delta, adapted.backbone)
    found = ffm.evaluate(task, *parts, data.test, **data.scoring)
    return {"accuracy": float(ffm.evaluation.means(found)["accuracy"])}
