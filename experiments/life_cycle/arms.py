"""The arms: a base as it is, tasks in turn, tasks together, and an adapter that is reused."""

import numpy as np

from fedjax_fm import peft, study
from fedjax_fm.evaluation import transfer
from fedjax_fm.experiments.life_cycle.stages import (
    Tuned,
    adapter_on,
    base,
    diloco,
    in_turn,
    losses,
    synchronous,
    tuned,
    untrained,
)
from fedjax_fm.experiments.life_cycle.texts import Task, permuted


def tests(run: study.Run) -> list[dict[str, np.ndarray]]:
    """Texts of each task that nobody trained on."""
    return [task.test for task in run.data.tasks]


def judged(run: study.Run, model: Tuned) -> dict[str, float]:
    """One model on all tasks, and on plays."""
    found = losses(model, tests(run)).mean()
    return {"loss": float(found), "plays": model.loss(run.data.plays)}


def pretrained(run: study.Run, together: bool = False) -> dict[str, float]:
    """A base of its own rate, which is not tuned any further.

    Args:
      run: of the arm.
      together: whether workers send each gradient.
    """
    start, workers = untrained(run), run.data.workers
    if together:
        return judged(run, synchronous(run, start, workers))
    return judged(run, diloco(run, start, workers, run["rate"]))


def as_it_is(run: study.Run, newer: bool = False) -> dict[str, float]:
    """The base of all arms, without any adapter."""
    return judged(run, base(run, newer))


def started(run: study.Run, newer: bool = False, random: bool = False) -> Tuned:
    """A base with a LoRA that does nothing yet."""
    begun = untrained(run) if random else base(run, newer)
    adapted = adapter_on(run, begun.module)
    return Tuned(adapted, adapted.delta)


def as_scores(run: study.Run, table: np.ndarray, last: Tuned) -> dict[str, float]:
    """What tasks in turn did to each other.

    Args:
      run: of the arm.
      table: losses f64[T + 1, T], before the first and after each task.
      last: what is judged on plays.
    """
    found = transfer(table[1:], table[0], higher_is_better=False)
    return {
        "loss": found.average,
        "backward": found.backward,
        "forgetting": found.forgetting,
        "forward": found.forward,
        "plays": last.loss(run.data.plays),
    }


def one_for_all(run: study.Run, whole: bool = False) -> dict[str, float]:
    """What is trained goes from task to task.

    Args:
      run: of the arm.
      whole: whether all weights are trained, or one adapter.
    """
    start = started(run)
    if whole:
        adapted = peft.apply(base(run).module, peft.full())
        start = Tuned(adapted, adapted.delta)
    table, models = in_turn(run, run.data.tasks, start, lambda model: model)
    return as_scores(run, table, models[-1])


def one_each(
    run: study.Run, newer: bool = False, random: bool = False, shuffle: bool = False
) -> dict[str, float]:
    """An adapter for each task, that no other task changes.

    Args:
      run: of the arm.
      newer: whether the base is the newer one.
      random: whether the base is random weights, for a control.
      shuffle: whether clients learn from tokens in random order, for a control.
    """
    start, tasks = started(run, newer, random), run.data.tasks
    if shuffle:
        tasks = [_permuted(run, task) for task in tasks]
    table, _ = in_turn(run, tasks, start, lambda model: start)
    own, first = np.diag(table[1:]), table[0]
    n = len(own)
    # Task j has its own adapter from when it has come, and the bare base before.
    known = np.tril(np.ones((n, n), bool))
    after = np.where(known, own[None], first[None])
    return as_scores(run, np.concatenate([first[None], after]), start)


def _permuted(run: study.Run, task: Task) -> Task:
    return task._replace(clients=[permuted(one, run.seed) for one in task.clients])


def together(run: study.Run) -> dict[str, float]:
    """All tasks at once, in as many rounds."""
    clients = [one for task in run.data.tasks for one in task.clients]
    n = len(run.data.tasks)
    return judged(run, tuned(run, started(run), clients, n * run.rounds))


def reused(run: study.Run) -> dict[str, float]:
    """Adapters of the base, put on the newer one; nothing is trained or sent."""

    def make() -> list[Tuned]:
        start = started(run)
        return in_turn(run, run.data.tasks, start, lambda model: start)[1]

    of_base = run.once(("adapters", run["rate"]), make)
    newer = started(run, newer=True).adapted
    each = [
        Tuned(newer, old.delta).loss(part)
        for old, part in zip(of_base, tests(run), strict=True)
    ]
    return {"loss": float(np.mean(each)), "plays": base(run, True).loss(run.data.plays)}
