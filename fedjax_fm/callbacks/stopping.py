"""An end before the last round."""

import numpy as np

from fedjax_fm import checks
from fedjax_fm.callbacks.base import Callback, Metrics, Stop
from fedjax_fm.engine.state import SimulationState


class _EarlyStopping(Callback):
    """See `early_stopping`.

    Decides from the metrics alone, so that a run that goes on decides alike.
    """

    def __init__(self, name: str, patience: int, least: float, highest: bool):
        self.name, self.patience, self.least, self.sign = (
            name,
            patience,
            least,
            -1.0 if highest else 1.0,
        )

    def begin(
        self, simulator, state: SimulationState, metrics: Metrics, last: int
    ) -> None:
        if self.name in metrics:
            self._stop_if_stale(metrics)

    def __call__(self, round: int, state: SimulationState, metrics: Metrics) -> None:
        if self.name not in metrics:
            raise ValueError(
                f"early_stopping({self.name!r}): there is no such column; there "
                f"are {', '.join(sorted(metrics))}. A callback that gives it "
                "comes before early_stopping in the list"
            )
        self._stop_if_stale(metrics)

    def _stop_if_stale(self, metrics: Metrics) -> None:
        column = np.asarray(metrics[self.name], np.float64)
        looks = self.sign * column[~np.isnan(column)]
        best, since = np.inf, 0
        for value in looks:
            better = value < best - self.least
            best, since = (value, 0) if better else (best, since + 1)
        if since >= self.patience:
            raise Stop(f"{self.name} has not improved for {since} looks")


def early_stopping(
    name: str,
    *,
    patience: int,
    least_improvement: float = 0.0,
    highest: bool | None = None,
) -> Callback:
    """Ends the run when a column of the metrics has not improved for some looks.

    Args:
      name: of the column, `eval_loss` for example; a callback before this one in the list gives it.
      patience: looks in a row without an improvement.
      least_improvement: by how much a look must be better than the best one before.
      highest: whether higher is better; default: of names that end in `accuracy`, else lower is.

    Returns:
      A callback.

    Raises:
      ValueError: when it is called, for a column that is not there.

    Example:
      `callbacks=[callbacks.evaluate(task, test), callbacks.early_stopping("eval_loss",
      patience=3)]`
    """
    checks.text("name", name)
    checks.whole("patience", patience, least=1)
    checks.real("least_improvement", least_improvement, least=0)
    if highest is None:
        highest = name.endswith("accuracy")
    return _EarlyStopping(
        name, patience, float(least_improvement), checks.flag("highest", highest)
    )
