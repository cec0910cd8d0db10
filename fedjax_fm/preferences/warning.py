"""A callback that says that rewards do not differ."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

EQUAL = "equal_rewards"  # the metric of `grpo`


def warn_of_equal_rewards(
    round: int, state: Any, metrics: Mapping[str, np.ndarray]
) -> None:
    """Warns where no group of the last round had two different rewards.

    Such a round has taught nothing. A callback: `run(..., callbacks=[...])`.

    Args:
      round: that has ended, from 1.
      state: not read.
      metrics: of a run of `grpo`.

    Raises:
      ValueError: there is no column of that name.

    Warns:
      UserWarning: all groups of the last round had equal rewards.

    Example:
      >>> warn_of_equal_rewards(2, None, {"equal_rewards": np.array([1.0, 0.5])})
    """
    if EQUAL not in metrics:
        raise ValueError(
            f"expected the metric {EQUAL!r} of preferences.grpo, got "
            f"{', '.join(sorted(metrics))}"
        )
    if metrics[EQUAL][-1] == 1:
        warnings.warn(
            f"round {round}: all answers of each group had one reward, so that nothing "
            "was learned; look at the reward, draw at a higher temperature, or take "
            "larger groups and easier prompts",
            stacklevel=2,
        )
