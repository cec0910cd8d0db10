"""A study's arms on a small configuration, without a folder."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.study.run import Run
from fedjax_fm.study.shape import Study


class Ran(NamedTuple):
    """One arm with one seed."""

    scores: dict[str, float]
    run: Run


def run_arms(
    study: Study, config: Any, seed: int = 0, leave_out: Sequence[str] = ()
) -> dict[str, Ran]:
    """Every arm at the first point of its grid, all of them on the data of one seed."""
    data, shared, found = study.data(config, seed, "final"), {}, {}
    for arm in study.arms:
        if arm.name not in leave_out:
            hyper = (study.arm(arm.like) if arm.like else arm).points(config)[0]
            run = Run(
                arm.name, config, seed, "final", hyper, lambda: data, shared=shared
            )
            found[arm.name] = Ran(scores=dict(arm.run(run)), run=run)
    return found


def check_scores(study: Study, found: dict[str, Ran]) -> None:
    """All arms give the primary score, and whatever they give is finite and known to the table."""
    known = {score.name for score in study.all_scores}
    for name, ran in found.items():
        assert study.primary.name in ran.scores, name
        assert set(ran.scores) <= known, name
        assert np.isfinite(list(ran.scores.values())).all(), name


def texts(*arrays: dict[str, np.ndarray]) -> set[bytes]:
    """The rows of tokens that occur, or of what frozen layers make of them."""

    def rows(one: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(one["input_ids"] if "input_ids" in one else one["hidden"])

    return {row.tobytes() for one in arrays for row in rows(one)}
