"""What a study consists of.

Imports nothing that computes, so that studies can be listed at once.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedjax_fm.runs.errors import UsageError


@dataclass(frozen=True)
class Score:
    """A number by which arms are told apart.

    Attributes:
      name: key of the mapping that an arm returns.
      label: how pages call it.
      unit: after its numbers, "%" for example.
      scale: by which its values are multiplied to be in that unit.
      highest: whether higher is better.
      digits: behind the point.
    """

    name: str
    label: str = ""
    unit: str = ""
    scale: float = 1.0
    highest: bool = True
    digits: int = 1

    @property
    def title(self) -> str:
        """For a column or an axis."""
        label = self.label or self.name.replace("_", " ")
        return f"{label} ({self.unit})" if self.unit else label

    @property
    def difference_unit(self) -> str:
        """Of differences: points, where the score is a share."""
        return "points" if self.unit == "%" else self.unit


ACCURACY = Score("accuracy", unit="%", scale=100.0)
LOSS = Score("loss", unit="nats", highest=False, digits=3)
PERPLEXITY = Score("perplexity", highest=False, digits=2)


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared.

    Attributes:
      name: by which it is called in comparisons and in files.
      run: `run(run) -> {score: number}`, see `Run`; with `at_once` `{score: [number for
        each of run.seeds]}`.
      label: how pages call it.
      grid: {setting: values}, tried on validation clients, each combination at the same
        budget; a text instead of values names the field of the configuration that has
        them. `run["setting"]` is the value.
      like: another arm, whose tuned settings this one takes: a control, or an ablation.
      at_once: all seeds are run by one call, for arms whose data do not change with the
        seed (`ffm.sweep`).
    """

    name: str
    run: Callable[[Any], Mapping[str, Any]]
    label: str = ""
    grid: Mapping[str, Sequence[Any] | str] = field(default_factory=dict)
    like: str | None = None
    at_once: bool = False

    @property
    def title(self) -> str:
        """For a row or a legend."""
        return self.label or self.name.replace("_", " ")

    def points(self, config: Any) -> list[dict[str, Any]]:
        """Every combination of the grid's values; [{}] without a grid."""
        values = [
            getattr(config, given) if isinstance(given, str) else given
            for given in self.grid.values()
        ]
        return [
            dict(zip(self.grid, point, strict=True))
            for point in itertools.product(*values)
        ]


@dataclass(frozen=True)
class Control:
    """An arm that must be worse than another.

    If it is not, the study cannot tell what it claims to.

    Attributes:
      arm: trained on shuffled labels, or not at all.
      than: the arm that must be better.
      why: what it would mean if the control did not fail, in a sentence.
    """

    arm: str
    than: str
    why: str = ""


@dataclass(frozen=True)
class Study:
    """A question and what answers it.

    Attributes:
      question: one sentence, ends with a question mark.
      expected: the order that is expected, written down before the first run.
      config: frozen dataclass with `seeds`, fixed before the run, and `smoke()`;
        `full()` is the whole study.
      data: `data(config, seed, split)`, split "tuning" or "final"; what an arm finds as
        `run.data`. Tuning data are of clients and contents that no seed of the study
        uses.
      primary: the score that decides.
      arms: at least two, in the order of the table.
      comparisons: (arm, than) pairs of the primary score; their verdicts are one family.
      controls: at least one.
      scores: others that the table shows.
      tuning_seed: of `data` and of the runs while tuning.
    """

    question: str
    expected: str
    config: type
    data: Callable[[Any, int, str], Any]
    primary: Score
    arms: Sequence[Arm]
    comparisons: Sequence[tuple[str, str]]
    controls: Sequence[Control]
    scores: Sequence[Score] = ()
    tuning_seed: int = 1000

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(
                f"two arms are called {twice[0]!r}; give each a name of its own"
            )
        if not self.controls:
            raise UsageError(
                "a study needs a control that must fail: Control(arm, than), "
                "with an arm that is trained on shuffled labels, or not at all"
            )
        pairs = [
            *self.comparisons,
            *((control.arm, control.than) for control in self.controls),
        ]
        asked = [name for pair in pairs for name in pair] + [
            arm.like for arm in self.arms if arm.like
        ]
        for name in asked:
            if name not in names:
                raise UsageError(
                    f"there is no arm {name!r}; there are {', '.join(names)}"
                )
        if same := [a for a, b in pairs if a == b]:
            raise UsageError(f"the arm {same[0]!r} is compared with itself")
        for arm in self.arms:
            if arm.like and (arm.grid or self.arm(arm.like).like):
                raise UsageError(
                    f"the arm {arm.name!r} takes the settings of {arm.like!r}, "
                    "which must be tuned itself"
                )

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def all_scores(self) -> list[Score]:
        """The primary one first."""
        return [self.primary, *self.scores]

    def check_budgets(self, config: Any) -> None:
        """Raises UsageError unless all arms that are tuned try as many settings."""
        counts = {arm.name: len(arm.points(config)) for arm in self.arms if arm.grid}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UsageError(
                f"every arm gets the same tuning budget, but the grids have other sizes: {shown}"
            )


def against(
    than: str, arms: Sequence[Arm], leave_out: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """(arm, than) of every arm but `than` and those left out."""
    return [
        (arm.name, than)
        for arm in arms
        if arm.name != than and arm.name not in leave_out
    ]
