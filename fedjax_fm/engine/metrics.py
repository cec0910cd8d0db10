"""Metrics on their way from a buffer on the device to what people read."""

from typing import Any

import jax
import numpy as np

from fedjax_fm.engine.messages import Messages
from fedjax_fm.engine.parts import of_digits


def on_host(buffer: Any, completed: int, messages: Messages) -> dict[str, np.ndarray]:
    """{name: array[rounds]}, what `Simulator.run` returns, from the sums and counts of
    the first `completed` rounds.
    """
    buffer = jax.tree.map(lambda x: np.asarray(x)[:completed], buffer)
    counts, ratios = buffer["counts"], buffer["ratios"].items()
    metrics = {  # of a round without anybody they are unknown, not zero
        name: np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)
        for name, (total, count) in ratios
    }
    metrics |= {
        "examples": counts["examples"].astype(np.int64),
        "clients": counts["arrived"].astype(np.int64),
    }
    metrics["examples_processed"] = of_digits(counts["processed"])
    by_shape_up = np.array(
        [bill.up if bill.up_is_exact else 0 for bill in messages.bills], np.int64
    )
    by_shape_down = np.array(
        [bill.down if bill.down_is_exact else 0 for bill in messages.bills], np.int64
    )
    metrics["uplink_bytes"] = counts["clients"] @ by_shape_up + of_digits(
        counts["uplink"]
    ).sum(-1)
    metrics["downlink_bytes"] = counts["started"] @ by_shape_down + of_digits(
        counts["downlink"]
    ).sum(-1)
    return metrics


def concatenated(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Metrics of several dispatches in a row."""
    return {
        name: np.concatenate([part[name] for part in parts])
        for name in (parts[0] if parts else ())
    }
