"""Preference pairs of a run: the loss, the scores, and length as a control."""

import functools
from typing import Any

import numpy as np

from fedjax_fm import preferences, study
from fedjax_fm.callbacks.looks import worst_decile
from fedjax_fm.evaluation.intervals import plus_minus
from fedjax_fm.finetune.expressions import build, names_in
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.finetune.tokens import Arrays
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.types import Task

ACCURACY = "pair_accuracy"
# They change the frozen weights, which are the reference.
WITHOUT_REFERENCE = ("flora", "fedex_lora")
TWO_ADAPTERS = ("feddpa_f", "feddpa_t", "apfl")


def objective(text: str, adapted: Any) -> Task:
    """The loss on pairs that a text names; the reference is the model before training.

    Args:
      text: "dpo" or "ipo", with arguments of `preferences.dpo`, such as
        "dpo:beta=0.2,label_smoothing=0.1" or "dpo:length_margin=0.01".
      adapted: from `peft.apply`.

    Returns:
      The task.

    Raises:
      UsageError: an unknown name, or an argument that it does not take.
    """
    of_model = functools.partial(preferences.dpo, adapted)
    factories = {"dpo": of_model, "ipo": functools.partial(of_model, loss="ipo")}
    return build(text, factories, "loss on preferences")


def check(settings: Settings, kind: str) -> None:
    """Raises UsageError for settings that do not go with the examples.

    Args:
      settings: of the run.
      kind: of the examples.
    """
    if kind != "pairs":
        if settings.preferences != Settings.preferences:
            raise UsageError(
                f"--preferences {settings.preferences}: these examples are no pairs; "
                "give --chosen and --rejected, or leave it out"
            )
        return
    (name, *_) = names_in(settings.method)
    if name in WITHOUT_REFERENCE:
        raise UsageError(
            f"{name} changes the frozen weights, which are the reference that "
            f"{settings.preferences} compares with; give another --method"
        )
    if name in TWO_ADAPTERS:
        raise UsageError(
            f"{name} trains a shared and a private adapter, and a loss on pairs compares "
            "one with the reference; give another --method"
        )
    if settings.canaries:
        raise UsageError("--canaries plants texts, not pairs: leave it out")


def longer(run: study.Run) -> dict[str, float]:
    """A control: of each held-out pair the longer answer."""
    groups = [_longer(rows) for rows in run.data.judged]
    means = np.array([one.mean() for one in groups])
    run.clients = means.tolist()
    return {
        ACCURACY: float(np.concatenate(groups).mean()),
        "worst": worst_decile(means, "accuracy"),
    }


def _longer(rows: Arrays) -> np.ndarray:
    """1 where the chosen answer has more tokens, one half where both have as many."""
    chosen, rejected = (
        (rows[f"{side}_labels"] != IGNORED).sum(axis=1)
        for side in ("chosen", "rejected")
    )
    return (1 + np.sign(chosen - rejected)) / 2


def over_clients(accuracies: np.ndarray, margins: np.ndarray) -> str:
    """Scores of one model with their intervals over the clients that judge it.

    Args:
      accuracies: f64[clients], of pairs.
      margins: f64[clients].
    """
    of_pairs = plus_minus(accuracies, scale=100)
    return (
        f"pair accuracy {of_pairs} %, margin {plus_minus(margins, digits=4)} (means over "
        f"{len(accuracies)} clients, 95 % half-widths)"
    )
