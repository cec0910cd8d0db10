"""A callback that writes metrics for experiment trackers."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedjax_fm.callbacks.base import Callback, Metrics
from fedjax_fm.callbacks.history import as_line, rows_of
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.runs.settings import nearest
from fedjax_fm.systems.counts import WORK, per_example

if TYPE_CHECKING:
    from fedjax_fm.engine.simulator import Simulator


class Tracker(Protocol):
    """Where rows of metrics go; steps are rounds."""

    def begin(self, rows: Sequence[dict[str, Any]], since: int) -> None:
        """Called before the first round.

        Args:
          rows: of an earlier part of the run, which was tracked before.
          since: the last round of that part, 0 if there is none.
        """
        ...

    def log(self, row: dict[str, Any]) -> None:
        """Called after each round.

        Args:
          row: the round's metrics, from `rows_of`.
        """
        ...

    def end(self) -> None:
        """Called after the last round."""
        ...


class _Jsonl:
    """metrics.jsonl, one row a round; flushed after each."""

    def __init__(self, folder: Path):
        self.folder = RunFolder(folder)

    def begin(self, rows: Sequence[dict[str, Any]], since: int) -> None:
        lines = [as_line(row) for row in rows]
        folder = self.folder.made().up_to_date()
        folder.write_text("metrics.jsonl", "".join(lines))

    def log(self, row: dict[str, Any]) -> None:
        self.folder.append_metrics(row)

    def end(self) -> None:
        pass


class _TensorBoard:
    """Event files of tensorboardX, a scalar for each column."""

    def __init__(self, folder: Path):
        self.folder, self._writer = folder, None
        self._make = _imported("tensorboardX", "tensorboard").SummaryWriter

    def begin(self, rows: Sequence[dict[str, Any]], since: int) -> None:
        # Steps after `since`, of a part that was killed, are shown no more.
        purged = since + 1 if since else None
        # The suffix, because a file of the same second would be written over.
        self._writer = self._make(
            str(self.folder / "tensorboard"),
            purge_step=purged,
            filename_suffix=f".{since}",
        )

    def log(self, row: dict[str, Any]) -> None:
        assert self._writer is not None
        for name, value in _known(row).items():
            self._writer.add_scalar(name, value, row["round"])

    def end(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Wandb:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it on disk."""

    def __init__(self, folder: Path):
        self.folder, self._run = folder, None
        self._wandb = _imported("wandb", "wandb")

    def begin(self, rows: Sequence[dict[str, Any]], since: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            dir=str(self.folder),
            name=self.folder.name,
            id=self.folder.name,
            resume="allow",
        )

    def log(self, row: dict[str, Any]) -> None:
        assert self._run is not None
        self._run.log(_known(row), step=row["round"])

    def end(self) -> None:
        if self._run is not None:
            self._run.finish()


class _Mlflow:
    """A run of MLflow, in FOLDER/mlflow.db unless MLFLOW_TRACKING_URI is set.

    It is a database, because MLflow 3.17 refuses folders. The run's id stays in
    FOLDER/mlflow_run, by which it is gone on with.
    """

    def __init__(self, folder: Path):
        self.folder, self._mlflow = folder, _imported("mlflow", "mlflow")

    def begin(self, rows: Sequence[dict[str, Any]], since: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if "MLFLOW_TRACKING_URI" not in os.environ:
            database = (self.folder / "mlflow.db").resolve()
            self._mlflow.set_tracking_uri(f"sqlite:///{database}")
        place = self.folder / "mlflow_run"
        if rows and place.is_file():
            run_id = place.read_text(encoding="utf-8").strip()
            self._mlflow.start_run(run_id=run_id)
            return
        run = self._mlflow.start_run(run_name=self.folder.name)
        place.write_text(f"{run.info.run_id}\n", encoding="utf-8")

    def log(self, row: dict[str, Any]) -> None:
        self._mlflow.log_metrics(_known(row), step=row["round"])

    def end(self) -> None:
        self._mlflow.end_run()


class _Trackio:
    """A run of trackio, where `trackio show` looks for it: TRACKIO_DIR, or its default.

    The project is TRACKIO_PROJECT, or fedjax_fm.
    """

    def __init__(self, folder: Path):
        self.folder, self._run, self._next = folder, None, 0
        self._trackio = _imported("trackio", "trackio")

    def begin(self, rows: Sequence[dict[str, Any]], since: int) -> None:
        self._run = self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "fedjax_fm"),
            name=self.folder.name,
            resume="allow" if rows else "never",
            embed=False,  # no page opens in a notebook
        )
        # Rounds that were logged before the run was killed are not logged again.
        self._next = getattr(self._run, "_next_step", 0) if rows else 0

    def log(self, row: dict[str, Any]) -> None:
        assert self._run is not None
        if row["round"] >= self._next:
            self._run.log(_known(row), step=row["round"])

    def end(self) -> None:
        if self._run is not None:
            self._trackio.finish()


TRACKERS = {
    "jsonl": _Jsonl,
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}


class _Track(Callback):
    """See `track`."""

    def __init__(self, trackers: Sequence[Tracker]):
        self.trackers = trackers
        self._first = self._written = 0
        self._begun = False

    def begin(
        self,
        simulator: "Simulator",
        state: SimulationState,
        metrics: Metrics,
        last: int,
    ) -> None:
        rows = rows_of(metrics, state.round - len(metrics["loss"])) if metrics else []
        self._first = state.round - len(rows)
        self._written = state.round
        for tracker in self.trackers:
            tracker.begin(rows, state.round if rows else 0)
            if isinstance(tracker, _Jsonl):
                work = per_example(simulator)._asdict()
                tracker.folder.write_json(WORK, work)
        self._begun = True

    def tick(
        self, state: SimulationState, metrics: Metrics, seconds: float, due: bool
    ) -> None:
        for row in rows_of(metrics, self._first, since=self._written):
            for tracker in self.trackers:
                tracker.log(row)
        self._written = state.round

    def end(
        self, state: SimulationState, metrics: Metrics, error: BaseException | None
    ) -> None:
        if self._begun:
            for tracker in self.trackers:
                tracker.end()


def track(
    folder: str | os.PathLike[str], *, to: Sequence[str] = ("jsonl",)
) -> Callback:
    """Writes the metrics of every round for experiment trackers.

    Beside `checkpoint`, a run that goes on is continued in the trackers, too, with no
    round twice. All lie in the folder, MLflow's as mlflow.db unless MLFLOW_TRACKING_URI
    is set; trackio's lie where `trackio show` looks, in TRACKIO_DIR or its default. No
    variable of the environment is written.

    Args:
      folder: made if it is missing; its name is the run's.
      to: some of "jsonl" (metrics.jsonl), "tensorboard" (needs tensorboardX), "wandb",
        "mlflow" and "trackio" (need those packages; each is an extra of that name).

    Returns:
      A callback.

    Raises:
      UsageError: an unknown tracker; names the nearest one.
      ImportError: a package that is not installed; says how to install it.

    Example:
      >>> rows = track("runs/one", to=["jsonl"])  # callbacks=[rows]
      >>> track("runs/one", to=["json"])
      Traceback (most recent call last):
      fedjax_fm.runs.errors.UsageError: unknown tracker 'json'; did you mean 'jsonl'? ...
    """
    if isinstance(to, str) or not to:
        raise UsageError(
            f"expected to as a list of {', '.join(TRACKERS)}, got to={to!r}"
        )
    for name in to:
        if name not in TRACKERS:
            raise UsageError(nearest(str(name), TRACKERS, "tracker"))
    place = Path(folder)
    return _Track([TRACKERS[name](place) for name in to])


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a row that have a value."""
    return {
        name: value
        for name, value in row.items()
        if name != "round" and value is not None
    }


def _imported(module: str, what: str) -> Any:
    """The module, or an ImportError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"track(to=[{what!r}]) needs {module}: pip install 'fedjax-fm[{what}]'"
        ) from error
