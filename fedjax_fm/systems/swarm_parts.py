"""What a swarm is made of: peers, pieces of work, and machines that do them."""

from collections import deque
from typing import NamedTuple

NOBODY = -1  # the number of no peer
FORWARD_SHARE = 1 / 4  # of a microbatch's seconds; backward computes forward again


class Peer(NamedTuple):
    """A machine.

    Attributes:
      stage: that it serves first; None: the slowest one when it joins.
      speed: microbatches a second, forward and backward.
      joins: seconds; 0 is there from the beginning.
      leaves: seconds at which it fails; None stays.
    """

    stage: int | None
    speed: float
    joins: float = 0.0
    leaves: float | None = None


class Done(NamedTuple):
    """A piece of work that a peer has finished.

    Attributes:
      second: when.
      peer: its number.
      stage: of the model.
      microbatch: its number, over all steps.
      backward: whether its gradient was computed; else its activations.
      counts: False: the peer failed before the step ended, so it was done again.
    """

    second: float
    peer: int
    stage: int
    microbatch: int
    backward: bool
    counts: bool = True


class Task(NamedTuple):
    """Work for one peer."""

    microbatch: int
    stage: int
    backward: bool


class Machine:
    """A peer that is there."""

    def __init__(self, number: int, peer: Peer, stage: int):
        self.number, self.speed, self.stage = number, peer.speed, stage
        self.waiting = {True: deque(), False: deque()}  # backward first
        self.current: Task | None = None
        self.serves, self.began = False, 0.0
        self.life = 0  # grows when what it was doing is void

    def take(self) -> list[Task]:
        """All that it has to do, which it does no more."""
        tasks = [*self.waiting[True], *self.waiting[False]]
        if self.current is not None:
            tasks.append(self.current)
        self.waiting = {True: deque(), False: deque()}
        self.current, self.life = None, self.life + 1
        return tasks
