"""One arm of a study, without the files of a whole run."""

from typing import Any

from fedjax_fm.study import Study
from fedjax_fm.study.run import Run


def run_arm(
    study: Study,
    config: Any,
    name: str,
    seed: int = 0,
    split: str = "final",
    **hyper: Any,
):
    """(scores, Run) of one arm; settings of its grid that are not given are the first ones."""
    arm = study.arm(name)
    tuned = study.arm(arm.like) if arm.like else arm
    given = {**tuned.points(config)[0], **hyper}
    run = Run(name, config, seed, split, given, lambda: study.data(config, seed, split))
    return arm.run(run), run
