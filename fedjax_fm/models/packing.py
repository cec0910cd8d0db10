"""Several short texts in one row, so that a step pays for tokens and not for padding.

Rows carry the number of the text of each token; the decoder masks attention between
texts and counts positions from each one's start, so that every loss is what it would be
alone.

References:
  Krell et al., 2021, Efficient Sequence Packing without Cross-contamination, arXiv
  2107.02027.
"""

import numpy as np

from fedjax_fm import checks
from fedjax_fm.models.language_modeling import IGNORED


def pack(arrays: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Puts texts, in their order, each into the first row with room for it (first fit).

    Args:
      arrays: {"input_ids", "attention_mask", "labels"} int32[n, T], one text a row,
        padded on the right, as `Chat.encode` gives them.
      length: tokens of a packed row.

    Returns:
      The same names, int32[m, length], m <= n; `attention_mask` is 1, 2, ... by text
      and 0 for padding.

    Raises:
      TypeError, ValueError: arrays missing, left over or of unequal shape; a text that
        is longer than a row, or has padding on the left or inside; nothing is cut.

    References:
      Krell et al., 2021, arXiv 2107.02027.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm import models
      >>> ids = np.array([[5, 8, 13], [21, 0, 0]], np.int32)
      >>> arrays = {"input_ids": ids, "labels": ids, "attention_mask": (ids > 0) * 1}
      >>> models.pack(arrays, length=5)["attention_mask"]
      array([[1, 1, 1, 2, 0]], dtype=int32)
    """
    expected = {"input_ids", "attention_mask", "labels"}
    if set(arrays) != expected:
        raise ValueError(
            f"packing needs the arrays {sorted(expected)}, got {sorted(arrays)}; "
            "others have no packed form"
        )
    checks.whole("length", length, least=1)
    mask = np.asarray(arrays["attention_mask"])
    if len(mask) == 0:
        raise ValueError("nothing to pack: the arrays have no rows")
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if mask.ndim != 2 or len(set(shapes.values())) > 1:
        raise ValueError(f"packing needs arrays [n, T] of one shape, got {shapes}")
    sizes = mask.sum(axis=1)
    padded_right = np.arange(mask.shape[1]) < sizes[:, None]
    if (mask != padded_right).any():
        raise ValueError(
            "packing needs one text a row, its mask 1 and then 0 (padding on the right)"
        )
    longest = int(sizes.argmax())
    if sizes[longest] > length:
        raise ValueError(
            f"text {longest} has {int(sizes[longest])} tokens, a packed row has "
            f"{length}"
        )
    used: list[int] = []  # tokens of each row so far
    texts: list[int] = []  # texts of each row so far
    places = []
    for size in map(int, sizes):
        with_room = (r for r, n in enumerate(used) if n + size <= length)
        row = next(with_room, len(used))
        if row == len(used):
            used.append(0)
            texts.append(0)
        places.append((row, used[row], texts[row] + 1))
        used[row], texts[row] = used[row] + size, texts[row] + 1
    packed = {
        name: np.zeros((len(used), length), np.int32)
        for name in ("input_ids", "attention_mask")
    }
    packed["labels"] = np.full((len(used), length), IGNORED, np.int32)
    for number, (row, start, text) in enumerate(places):
        size = int(sizes[number])
        for name in ("input_ids", "labels"):
            packed[name][row, start : start + size] = arrays[name][number, :size]
        packed["attention_mask"][row, start : start + size] = text
    return packed
