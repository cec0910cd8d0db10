"""Interleaved weighted round-robin: requests in proportion to what peers can do.

Each peer has a key, the work that it was given so far in its own seconds; of those that
are not ahead of their share, the one whose next piece would end first is next. So after
any number of requests each peer has its share of them to within one.

References:
  Ryabinin, Dettmers, Diskin and Borzunov, SWARM Parallelism, 2023, arXiv 2301.11913,
  whose code takes the smallest key; that gives a fast peer less than its share at first,
  by more than one where speeds differ much. Bennett and Zhang, WF2Q, 1996, have the rule
  that is used here.
"""

import math
from collections.abc import Hashable
from typing import Any

from fedjax_fm import checks

SLACK = 1e-9  # of float sums


class Wiring:
    """Chooses among the peers of a stage.

    Args:
      memory: share of an old estimate of a peer's seconds that a new one leaves, 0 to 1.

    Example:
      >>> wiring = Wiring()
      >>> wiring.join("fast", seconds=1.0)
      >>> wiring.join("slow", seconds=3.0)
      >>> [wiring.choose() for _ in range(4)]
      ['fast', 'slow', 'fast', 'fast']
    """

    def __init__(self, memory: float = 0.8):
        checks.real("memory", memory, least=0, below=1)
        self.memory = memory
        self.seconds: dict[Hashable, float] = {}  # estimate for one request
        self._keys: dict[Hashable, float] = {}
        self._now = 0.0  # virtual: what each peer would have if all had their share

    def __len__(self) -> int:
        """Peers that can be chosen."""
        return len(self.seconds)

    def join(self, peer: Hashable, seconds: float | None = None) -> None:
        """Adds a peer, which begins where the others are by now.

        Args:
          peer: its name.
          seconds: that a request takes it; None: as the others on average.
        """
        if seconds is None:
            known = list(self.seconds.values())
            seconds = sum(known) / len(known) if known else 1.0
        self.seconds[peer] = checks.real("seconds", seconds, above=0)
        self._keys[peer] = self._now

    def leave(self, peer: Hashable) -> None:
        """Takes a peer out.

        Args:
          peer: its name; one that is not there is no error.
        """
        self.seconds.pop(peer, None)
        self._keys.pop(peer, None)

    def observe(self, peer: Hashable, seconds: float) -> None:
        """Notes how long a request took, as an exponential mean.

        Args:
          peer: its name.
          seconds: of the request.
        """
        if peer in self.seconds:
            old = self.seconds[peer]
            self.seconds[peer] = self.memory * old + (1 - self.memory) * seconds

    def choose(self) -> Any:
        """The peer of the next request.

        Raises:
          LookupError: there is none.
        """
        if not self.seconds:
            raise LookupError("no peer is there to choose")
        able = [peer for peer, key in self._keys.items() if key <= self._now + SLACK]
        if not able:  # estimates have changed since
            able = list(self._keys)

        def ends(peer: Hashable) -> float:
            return self._keys[peer] + self.seconds[peer]

        peer = min(able, key=ends)
        self._keys[peer] = ends(peer)
        self._now += 1 / math.fsum(1 / one for one in self.seconds.values())
        return peer
