"""A callback that ends a run before the last round."""

import numpy as np

from fedjax_fm import checks
from fedjax_fm.callbacks.base import Callback, Metrics, Stop
from fedjax_fm.engine.state import SimulationState


class _EarlyStopping(Callback):
    """See `early_stopping`.

    It decides from the metrics alone, so that a run that goes on decides alike.
    """

    def __init__(self, name: str, patience: int, least: float, highest: bool):
        self.name, self.patience, self.least = name, patience, least
        self.sign = -1.0 if highest else 1.0

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
      name: of the column, `eval_loss` for example. A callback that gives it comes
        before this one in the list.
      patience: looks in a row without an improvement.
      least_improvement: by how much a look must be better than the best one before.
      highest: whether higher is better; default: whether the name ends in `accuracy`.

    Returns:
      A callback.

    Raises:
      ValueError: when it is called and there is no such column.

    Example:
      >>> stop = early_stopping("loss", patience=2)
      >>> stop(2, None, {"loss": np.array([0.4, 0.5])})
      >>> stop(3, None, {"loss": np.array([0.4, 0.5, 0.6])})
      Traceback (most recent call last):
      fedjax_fm.callbacks.base.Stop: loss has not improved for 2 looks
    """
    checks.text("name", name)
    checks.whole("patience", patience, least=1)
    checks.real("least_improvement", least_improvement, least=0)
    if highest is None:
        highest = name.endswith("accuracy")
    checks.flag("highest", highest)
    return _EarlyStopping(name, patience, float(least_improvement), highest)
