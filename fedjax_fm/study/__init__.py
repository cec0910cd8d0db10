"""One form for all studies.

A study has a question, arms with equal tuning budgets, controls that must fail, and a
report that is made from the results alone:

    STUDY = study.Study(
        question=...,
        expected=...,
        config=Config,
        data=data,
        primary=study.ACCURACY,
        arms=ARMS,
        comparisons=study.against("fedit", ARMS),
        controls=[study.Control("shuffled", "fedit")],
    )

An arm is a function of one `Run`: it simulates, and returns its scores.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fedjax_fm.study.shape import (
    ACCURACY,
    LOSS,
    PERPLEXITY,
    Arm,
    Control,
    Score,
    Study,
    against,
    arm_of,
    percent,
    shuffled,
    walk,
)

if TYPE_CHECKING:
    from fedjax_fm.study.run import Run, Simulated, shuffled_labels

__all__ = [
    "ACCURACY",
    "LOSS",
    "PERPLEXITY",
    "Arm",
    "Control",
    "Run",
    "Score",
    "Simulated",
    "Study",
    "against",
    "arm_of",
    "percent",
    "shuffled",
    "shuffled_labels",
    "walk",
]


def __getattr__(name: str) -> Any:
    if name in ("Run", "Simulated", "shuffled_labels"):
        return getattr(importlib.import_module("fedjax_fm.study.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
