"""Columns of a table whose values are tuples, dictionaries or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def object_column(values: Sequence[Any]) -> np.ndarray:
    """Any values as an object array of one dimension.

    Args:
      values: one a row; tuples of equal length do not become a second dimension.

    Returns:
      object[rows].

    Example:
      >>> object_column([("a", "b"), ("c", "d")]).shape
      (2,)
    """
    column = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        column[row] = value
    return column
