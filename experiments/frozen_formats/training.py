"""FedAvg of LoRA over frozen weights of a format."""

from typing import NamedTuple

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks, trees
from fedjax_fm.experiments.frozen_formats.decoder import decoder
from fedjax_fm.experiments.shared.encoders import classifier, with_lora
from fedjax_fm.experiments.shared.sentences import Arrays


class Data(NamedTuple):
    """The clients' sentences."""

    train: list[Arrays]
    test: Arrays  # of all clients


class Format(NamedTuple):
    """How frozen weights are held: arguments of `from_pretrained`."""

    dtype: str = "float32"
    frozen: str = "dense"


F32 = Format()


def over(run: study.Run, form: Format, permute: bool = False) -> dict[str, float]:
    """LoRA over frozen weights of a format.

    Args:
      run: of the arm.
      form: of the frozen weights.
      permute: whether the frozen values of every array are.
    """
    own = adapted(run, form, permute)
    found = simulated(run, own)
    scores = {"megabytes": trees.nbytes(own.backbone) / 1e6, **found.scores}
    if run.shuffles_labels or permute or run.is_tuning:
        return scores
    far = distances(run, found.metrics["loss"])
    return {**scores, **far, **decoder(run, form._asdict())}


def adapted(run: study.Run, form: Format, permute: bool = False) -> peft.Adapted:
    """MiniLM with LoRA and a head, whose initial values are the same in every format."""
    model = classifier(run.config.model, run.seed, **form._asdict())
    found = with_lora(model, run.config.rank, run.seed)
    if not permute:
        return found
    random = np.random.default_rng(run.seed)

    def elsewhere(leaf: jax.Array) -> np.ndarray:
        flat = random.permutation(np.ravel(leaf))
        return flat.reshape(leaf.shape)

    return found._replace(backbone=jax.tree.map(elsewhere, found.backbone))


def simulated(run: study.Run, own: peft.Adapted) -> study.Simulated:
    """FedAvg, evaluated on the test set half-way and at the end."""
    config, task = run.config, tasks.classification(own)
    adam = optax.adam(run["learning_rate"])
    return run.simulate(
        ffm.fedavg(task, adam, **study.walk(config)),
        run.data.train,
        own,
        cohort_size=config.cohort,
        task=task,
        test=run.data.test,
        every=max(1, config.rounds // 2),
    )


def distances(run: study.Run, loss: np.ndarray) -> dict[str, float]:
    """How far the training losses of all rounds are from those over f32.

    Args:
      run: of the arm.
      loss: f64[rounds].
    """

    def reference() -> np.ndarray:
        found = simulated(run, adapted(run, F32))
        return found.metrics["loss"]

    f32 = run.once("f32", reference)
    share = np.abs(loss - f32) / f32
    return {"largest": share.max(), "mean": share.mean(), "last": share[-1]}
