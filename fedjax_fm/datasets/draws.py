"""Random draws that are the same on every machine and in every version of Python.

Of `random.Random` only `random()` after a given seed is promised to stay the same, so
nothing else of it is used.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Draws:
    """A stream of draws that depends on a key alone.

    Args:
      key: any text, such as "seed/task/number".

    Example:
      >>> draws = Draws("a")
      >>> [draws.integer(1, 6) for _ in range(5)]
      [2, 1, 4, 4, 2]
      >>> draws.shuffled(["a", "b", "c", "d"])
      ['a', 'd', 'b', 'c']
    """

    def __init__(self, key: str) -> None:
        self._random = random.Random()
        self._random.seed(key, version=2)

    def integer(self, least: int, most: int) -> int:
        """A whole number, each equally likely.

        Args:
          least: the smallest one.
          most: the largest one, which may come, too.

        Returns:
          least <= number <= most.
        """
        return least + int(self._random.random() * (most - least + 1))

    def one(self, items: Sequence[Item]) -> Item:
        """One item, each equally likely.

        Args:
          items: at least one.

        Returns:
          The item.
        """
        return items[self.integer(0, len(items) - 1)]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All items in random order (Fisher and Yates).

        Args:
          items: stay as they are.

        Returns:
          A new list.
        """
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.integer(0, last)
            order[last], order[other] = order[other], order[last]
        return order

    def some(self, items: Sequence[Item], count: int) -> list[Item]:
        """Several different items.

        Args:
          items: at least `count`.
          count: how many.

        Returns:
          `count` items in random order.
        """
        return self.shuffled(items)[:count]
