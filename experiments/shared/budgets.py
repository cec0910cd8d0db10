"""A score at a number of bytes, from the curve of a run."""

from collections.abc import Sequence


def at_most(
    curve: Sequence[dict[str, float]], budget: float, name: str, start: float
) -> float:
    """The score at the last look before more bytes were sent, both ways.

    Args:
      curve: of `Run`, rows {"uplink_bytes", "downlink_bytes", name, …}.
      budget: bytes.
      name: of the score.
      start: where the first look comes after the budget: the score before training.

    Example:
      >>> curve = [{"uplink_bytes": 2, "downlink_bytes": 2, "eval_accuracy": 0.5}]
      >>> at_most(curve, 4, "eval_accuracy", 0.1), at_most(curve, 3, "eval_accuracy", 0.1)
      (0.5, 0.1)
    """
    within = [row for row in curve if sent(row) <= budget]
    return within[-1][name] if within else start


def sent(row: dict[str, float]) -> float:
    """Bytes up and down until a row of a curve.

    Args:
      row: of the curve.
    """
    return row["uplink_bytes"] + row["downlink_bytes"]
