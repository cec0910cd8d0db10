"""What FedTiny knows of every layer beforehand: its mask, its block, how much moves.

Huang, Zhang, Sun, Fang, Yuan, Wu, 2022, arXiv 2212.01977, progressive pruning.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.sparsity import Layers


class LayerPlan(NamedTuple):
    """What is known of a layer beforehand.

    Attributes:
      n: entries.
      kept: n_l, entries that its mask keeps.
      most: the largest a_l.
      block: number of its block.
    """

    n: int
    kept: int
    most: int
    block: int

    @classmethod
    def of(cls, mask: np.ndarray, block: int, share: float) -> "LayerPlan":
        """The plan of a layer.

        Args:
          mask: bool, concrete.
          block: number of its block.
          share: half of the largest share of the kept entries that is exchanged.
        """
        kept = int(mask.sum())
        most = min(int(2 * share * kept + 0.5), kept, mask.size - kept)
        return cls(n=mask.size, kept=kept, most=most, block=block)


def plans_of(
    masks: dict[str, np.ndarray], blocks: Sequence[str] | None, share: float
) -> dict[str, LayerPlan]:
    """The plan of every layer.

    Args:
      masks: of `checked_masks`.
      blocks: regular expressions, one a block, in the order of the forward pass; None:
        every leaf by itself.
      share: half of the largest share of the kept entries that is exchanged.

    Returns:
      {dotted path: plan}.

    Raises:
      ValueError: a leaf that no block or several of them name.
    """
    groups = _groups(masks, blocks)
    return {n: LayerPlan.of(mask, groups[n], share) for n, mask in masks.items()}


def checked_masks(masks: Any) -> dict[str, np.ndarray]:
    """The masks as arrays of numpy, each keeping something.

    Args:
      masks: what should be bool by dotted paths.

    Raises:
      TypeError, ValueError: they are not, or a layer is dead.
    """
    if not isinstance(masks, dict) or not masks:
        raise TypeError(
            f"expected masks as {{dotted path of a leaf: bool}}, got "
            f"masks={checks.shown(masks)}"
        )
    found = {name: np.asarray(mask) for name, mask in masks.items()}
    for name, mask in found.items():
        if mask.dtype != bool or not mask.any():
            raise ValueError(
                f"masks[{name!r}] is {mask.dtype}{list(mask.shape)} and keeps "
                f"{int(np.sum(mask != 0))} entries; expected bool, and one at least, "
                "or the layer is dead"
            )
    return found


def _groups(masks: dict, blocks: Sequence[str] | None) -> dict[str, int]:
    """Which block each leaf belongs to."""
    if blocks is None:
        return {name: i for i, name in enumerate(masks)}
    if isinstance(blocks, str) or not len(blocks):
        raise ValueError(
            f"expected blocks as several regular expressions, got blocks={blocks!r}"
        )
    for pattern in blocks:
        Layers(pattern).checked()
    found = {}
    for name in masks:
        own = [i for i, pattern in enumerate(blocks) if re.search(pattern, name)]
        if len(own) != 1:
            raise ValueError(
                f"expected one of blocks={list(blocks)} to name the leaf {name!r}, "
                f"{len(own)} do"
            )
        found[name] = own[0]
    return found
