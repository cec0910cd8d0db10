"""What must be worse than a method that learns: no training, one answer."""

import numpy as np

import fedjax_fm as ffm
from fedjax_fm import study
from fedjax_fm.evaluation.evaluate import means

Arrays = dict[str, np.ndarray]


def largest_class(run: study.Run) -> dict[str, float]:
    """One answer for all of `run.data.test`."""
    labels = run.data.test["label"]
    largest = np.bincount(labels).max()
    return {"accuracy": float(largest / len(labels))}


def as_it_begins(
    task: ffm.Task, delta: ffm.types.Tree, backbone: ffm.types.Tree, test: Arrays
) -> float:
    """Accuracy of a model before training.

    Args:
      task: of the model.
      delta: its trainable tree.
      backbone: its frozen tree.
      test: examples.
    """
    scores = ffm.evaluate(task, delta, backbone, test)
    return float(means(scores)["accuracy"])
