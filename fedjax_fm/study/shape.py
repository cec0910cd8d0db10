"""What a study consists of: scores, arms, controls and a question.

Imports nothing that computes, so that listing studies takes no time.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedjax_fm.runs.errors import UsageError


@dataclass(frozen=True)
class Score:
    """A number by which arms are compared.

    Attributes:
      name: key of the mapping that an arm returns.
      label: its name on pages; default: `name` with blanks.
      unit: written after its numbers, "%" for example.
      scale: factor that brings its values to that unit.
      highest: whether higher is better.
      digits: decimals that are shown.

    Example:
      >>> ACCURACY.title, ACCURACY.shown(0.8125)
      ('accuracy (%)', '81.2 %')
    """

    name: str
    label: str = ""
    unit: str = ""
    scale: float = 1.0
    highest: bool = True
    digits: int = 1

    @property
    def title(self) -> str:
        """Name and unit, for a column or an axis."""
        label = self.label or self.name.replace("_", " ")
        return f"{label} ({self.unit})" if self.unit else label

    @property
    def difference_unit(self) -> str:
        """The unit of differences: points, where the score is a share."""
        return "points" if self.unit == "%" else self.unit

    def shown(self, value: float) -> str:
        """A value in the score's unit.

        Args:
          value: as an arm returns it.

        Returns:
          The number with its unit.
        """
        return f"{self.scale * value:.{self.digits}f} {self.unit}".strip()


def percent(name: str, label: str = "", highest: bool = True) -> Score:
    """A score that is a share, and is shown in percent.

    Args:
      name: key of the mapping that an arm returns.
      label: its name on pages; default: `name` with blanks.
      highest: whether higher is better.

    Example:
      >>> percent("worst", "worst tenth").shown(0.75)
      '75.0 %'
    """
    return Score(name, label, "%", 100.0, highest)


ACCURACY = percent("accuracy")
LOSS = Score("loss", unit="nats", highest=False, digits=3)
PERPLEXITY = Score("perplexity", highest=False, digits=2)


@dataclass(frozen=True)
class Arm:
    """One of the methods, baselines or controls that are compared.

    Attributes:
      name: in comparisons and in files.
      run: `run(run) -> {score: number}`, see `Run`; with `at_once` `{score: [number for
        each of run.seeds]}`.
      label: its name on pages; default: `name` with blanks.
      grid: {setting: values}, each combination of which is tried on validation clients
        at the same budget. A text instead of values names the field of the
        configuration that has them. `run["setting"]` is the value.
      like: another arm, whose tuned settings this one takes: a control, or an ablation.
      at_once: whether one call runs all seeds (`ffm.sweep`), for arms whose data do not
        change with the seed.

    Example:
      >>> arm = Arm("fedavg", lambda run: {"accuracy": 0.5}, grid={"rate": (0.1, 0.2)})
      >>> arm.points(config=None)
      [{'rate': 0.1}, {'rate': 0.2}]
    """

    name: str
    run: Callable[[Any], Mapping[str, Any]]
    label: str = ""
    grid: Mapping[str, Sequence[Any] | str] = field(default_factory=dict)
    like: str | None = None
    at_once: bool = False

    @property
    def title(self) -> str:
        """The arm's name, for a row or a legend."""
        return self.label or self.name.replace("_", " ")

    def points(self, config: Any) -> list[dict[str, Any]]:
        """Every combination of the grid's values.

        Args:
          config: of the study; has the values that the grid gives by name.

        Returns:
          {setting: value} of each point; [{}] without a grid.
        """
        values = [
            getattr(config, given) if isinstance(given, str) else given
            for given in self.grid.values()
        ]
        return [
            dict(zip(self.grid, point, strict=True))
            for point in itertools.product(*values)
        ]


def arm_of(
    name: str,
    run: Callable[..., Mapping[str, Any]],
    label: str = "",
    grid: Mapping[str, Sequence[Any] | str] | None = None,
    *,
    like: str | None = None,
    **how: Any,
) -> Arm:
    """An arm of a function that several arms share, each with its own arguments.

    Args:
      name: in comparisons and in files.
      run: `run(run, **how) -> {score: number}`.
      label: its name on pages.
      grid: as for `Arm`.
      like: as for `Arm`.
      **how: arguments of `run`, for this arm.

    Example:
      >>> def trained(run, shuffle=False):
      ...     return {"accuracy": 0.5 if shuffle else 0.9}
      >>> arm_of("shuffled", trained, shuffle=True).run(None)
      {'accuracy': 0.5}
    """
    return Arm(name, functools.partial(run, **how), label, grid or {}, like)


def shuffled(arm: Arm, label: str = "", name: str = "shuffled") -> Arm:
    """A control: the same arm, but `Run.simulate` trains on permuted labels.

    What is left to learn is how often each label occurs.

    Args:
      arm: of the study; the control takes its settings.
      label: of the control, on pages.
      name: of the control.

    Example:
      >>> shuffled(Arm("fedavg", lambda run: {}, "FedAvg")).title
      'FedAvg, shuffled labels'
    """
    label = label or f"{arm.title}, shuffled labels"
    like = arm.like or (arm.name if arm.grid else None)
    return Arm(name, functools.partial(_on_shuffled_labels, arm.run), label, like=like)


def _on_shuffled_labels(
    arm: Callable[[Any], Mapping[str, Any]], run: Any
) -> Mapping[str, Any]:
    run.shuffles_labels = True
    return arm(run)


@dataclass(frozen=True)
class Control:
    """An arm that must be worse than another, or the study shows nothing.

    Attributes:
      arm: its name; it is trained on shuffled labels, or not at all.
      than: name of the arm that must be better.
      why: what it would mean if the control did not fail, in a sentence.
    """

    arm: str
    than: str
    why: str = ""


@dataclass(frozen=True)
class Study:
    """A question, and the arms and comparisons that answer it.

    Attributes:
      question: one sentence, ends with a question mark.
      expected: the order that is expected, written down before the first run.
      config: frozen dataclass with `seeds`, fixed before the run, and `smoke()`;
        `full()` is the whole study.
      data: `data(config, seed, split)` with split "tuning" or "final"; what it returns
        is `run.data` in an arm. Tuning data are of clients and contents that no seed of
        the study uses.
      primary: the score that decides.
      arms: at least two, in the order of the table.
      comparisons: (arm, than) pairs of the primary score; their verdicts are one family.
      controls: at least one.
      scores: others that the table shows.
      tuning_seed: of `data` and of the runs while tuning.

    Raises:
      UsageError: two arms have one name, there is no control, a name is of no arm, an
        arm is compared with itself, or is `like` an arm that is not tuned itself.

    Example:
      >>> def trained(run):
      ...     return {"accuracy": 0.9}
      >>> def untrained(run):
      ...     return {"accuracy": 0.5}
      >>> tiny = Study(
      ...     question="Does training help?",
      ...     expected="Yes.",
      ...     config=dict,
      ...     data=lambda config, seed, split: None,
      ...     primary=ACCURACY,
      ...     arms=[Arm("trained", trained), Arm("untrained", untrained)],
      ...     comparisons=[],
      ...     controls=[Control("untrained", than="trained")],
      ... )
      >>> tiny.arm("trained").title
      'trained'
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
        controls = [(control.arm, control.than) for control in self.controls]
        pairs = [*self.comparisons, *controls]
        asked = [name for pair in pairs for name in pair]
        asked += [arm.like for arm in self.arms if arm.like]
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
        """The arm of that name.

        Args:
          name: of an arm that there is.
        """
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def all_scores(self) -> list[Score]:
        """The primary score, then the others."""
        return [self.primary, *self.scores]

    def check_budgets(self, config: Any) -> None:
        """Raises UsageError unless all arms that are tuned try as many settings.

        Args:
          config: of the study.
        """
        tuned = [arm for arm in self.arms if arm.grid]
        counts = {arm.name: len(arm.points(config)) for arm in tuned}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UsageError(
                f"every arm gets the same tuning budget, but the grids have other sizes: {shown}"
            )


def against(
    than: str, arms: Sequence[Arm], leave_out: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Comparisons of every arm with one of them.

    Args:
      than: name of the arm that the others are compared with.
      arms: all arms of the study.
      leave_out: names of arms that are not compared.

    Returns:
      (arm, than) pairs.

    Example:
      >>> arms = [Arm(name, lambda run: {}) for name in ("a", "b", "c")]
      >>> against("a", arms, leave_out=["c"])
      [('b', 'a')]
    """
    left_out = {than, *leave_out}
    return [(arm.name, than) for arm in arms if arm.name not in left_out]


def walk(config: Any) -> dict[str, Any]:
    """What a client does in a round, as arguments of an algorithm.

    Args:
      config: of a study, with `local_steps` or else `epochs`, and `batch_size`.

    Returns:
      {"local_steps" or "epochs": number, "batch_size": examples}.

    Example:
      >>> from types import SimpleNamespace
      >>> walk(SimpleNamespace(local_steps=4, batch_size=8))
      {'local_steps': 4, 'batch_size': 8}
    """
    length = "local_steps" if hasattr(config, "local_steps") else "epochs"
    return {name: getattr(config, name) for name in (length, "batch_size")}
