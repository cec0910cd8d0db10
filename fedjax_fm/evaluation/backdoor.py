"""A naive backdoor: some clients train with a trigger in their texts and one label.

As FedPrompt tries it (Zhao et al. 2022, arXiv 2208.12268, section 4.4): a rare token is
put into a share of a client's texts, whose label becomes the attacker's. Whoever puts
that token into a text later wants that label. `with_trigger` does both, and
`attack_success` says how often it works.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks

Arrays = dict[str, np.ndarray]


class Trigger(NamedTuple):
    """What the attacker puts into a text, and what it is to be taken for.

    Attributes:
      tokens: ids, in this order.
      target: the label.
      place: how many tokens of the text stay before them; 1 leaves a first token such as
        [CLS] where it is.
    """

    tokens: tuple[int, ...]
    target: int
    place: int = 1

    def checked(self) -> "Trigger":
        """Itself, after a check of its values.

        Raises:
          TypeError, ValueError: names the value that makes no sense.
        """
        for token in self.tokens:
            checks.whole("tokens", token, least=0)
        if not self.tokens:
            raise ValueError("expected at least one token in the trigger, got none")
        checks.whole("target", self.target, least=0)
        checks.whole("place", self.place, least=0)
        return self


def with_trigger(
    arrays: Mapping[str, Any],
    trigger: Trigger,
    *,
    share: float = 1.0,
    seed: int = 0,
    ids: str = "input_ids",
    mask: str = "attention_mask",
    label: str | None = "label",
) -> Arrays:
    """Texts of which a share has the trigger, and the attacker's label.

    The tokens behind the trigger move to the right; what no longer fits is dropped.
    Columns other than the three are copied as they are.

    Args:
      arrays: {column: [n, ...]}, padded on the right.
      trigger: what is put in; it has to fit into the length of the rows.
      share: of the examples, 0 <= share <= 1, drawn without replacement; rounded down.
      seed: of the draw.
      ids: the column of tokens, i32[n, T].
      mask: the column of real tokens, [n, T]; those of the trigger are real.
      label: the column of classes, [n]; None leaves the labels alone, for tests, where
        `attack_success` needs the true ones.

    Returns:
      New arrays of the same shapes and dtypes.

    Raises:
      TypeError, ValueError: an argument makes no sense, a column is missing, or the
        trigger does not fit.

    References:
      Zhao, Du, Li, Chen, Shen 2022, arXiv 2208.12268, section 4.4.

    Example:
      >>> import numpy as np
      >>> texts = {
      ...     "input_ids": np.array([[101, 7, 8, 0]]),
      ...     "attention_mask": np.array([[1, 1, 1, 0]]),
      ...     "label": np.array([0]),
      ... }
      >>> found = with_trigger(texts, Trigger(tokens=(99,), target=1))
      >>> found["input_ids"].tolist(), found["label"].tolist()
      ([[101, 99, 7, 8]], [1])
    """
    trigger = trigger.checked()
    checks.real("share", share, least=0, most=1)
    checks.whole("seed", seed, least=0)
    needed = [name for name in (ids, mask, label) if name is not None]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"expected the columns {needed}, missing {missing}")
    result = {name: np.array(array) for name, array in arrays.items()}
    n, length = result[ids].shape
    end = trigger.place + len(trigger.tokens)
    if end > length:
        raise ValueError(
            f"expected a trigger that fits into rows of {length} tokens, got place="
            f"{trigger.place} and {len(trigger.tokens)} tokens"
        )
    order = np.random.default_rng(seed).permutation(n)
    rows = np.sort(order[: int(share * n)])
    for name, inside in ((ids, trigger.tokens), (mask, 1)):
        before = result[name][rows]
        after = np.empty_like(before)
        after[:, : trigger.place] = before[:, : trigger.place]
        after[:, trigger.place : end] = inside
        after[:, end:] = before[:, trigger.place : length - len(trigger.tokens)]
        result[name][rows] = after
    if label is not None:
        result[label][rows] = trigger.target
    return result


def attack_success(predicted: Any, labels: Any, target: int) -> np.ndarray:
    """How often texts with the trigger are taken for the attacker's label.

    Texts that have that label anyway do not count. A model without a backdoor scores
    what it mistakes for the target by itself: compare with that.

    Args:
      predicted: [n], classes of texts with the trigger.
      labels: [n], their true classes.
      target: the attacker's label.

    Returns:
      f64[m], 0 or 1 for each of the m texts of other labels; its mean is the attack's
      success rate.

    Raises:
      TypeError, ValueError: no class, or not one label a prediction.

    Example:
      >>> attack_success([1, 1, 0, 1], [0, 0, 0, 1], target=1).mean().round(3).item()
      0.667
    """
    checks.whole("target", target, least=0)
    found, true = np.asarray(predicted), np.asarray(labels)
    if found.shape != true.shape or found.ndim != 1:
        raise ValueError(
            "expected one prediction a label, got shapes "
            f"{found.shape} and {true.shape}"
        )
    return (found[true != target] == target).astype(np.float64)
