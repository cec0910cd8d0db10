"""SWARM parallelism: a pipeline whose stages are swarms of unreliable peers.

Ryabinin, Dettmers, Diskin and Borzunov, SWARM Parallelism: Training Large Models Can Be
Surprisingly Communication-Efficient, 2023, arXiv 2301.11913, on an event-driven clock:

    wiring       each microbatch goes to a peer of the next stage by `Wiring`, with an
                 exponential mean of the seconds that a peer computes (with those of its
                 whole response, waits included, throughput was a tenth lower)
    failure      what a peer had to do, and what it had done of this step, is done again
                 by others, from inputs that are kept until the step ends
    rebalancing  every T seconds the stage with the longest queue is sent a peer of the
                 fastest stage, if the slowest stage does not become slower by that
    step         when all microbatches have passed all stages both ways, the peers of a
                 stage add up their gradients

Nothing is computed: the log says who did what when, and `swarm_gradients` computes along
it.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedjax_fm import checks
from fedjax_fm.systems.wiring import Wiring

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


class SwarmRun(NamedTuple):
    """What has happened.

    Attributes:
      done: all pieces of work, in order of time.
      steps: seconds at which each optimizer step ended.
      bound: microbatches a second, the mean over time of the slowest stage's speeds.
      throughput: microbatches a second, all steps together.
      moves: (second, peer, from, to) of each rebalancing.
      lost: pieces of work that were done again.
    """

    done: list[Done]
    steps: list[float]
    bound: float
    throughput: float
    moves: list[tuple[float, int, int, int]]
    lost: int


class _Task(NamedTuple):
    """Work for one peer."""

    microbatch: int
    stage: int
    backward: bool


class _Machine:
    """A peer that is there."""

    def __init__(self, number: int, peer: Peer, stage: int):
        self.number, self.speed, self.stage = number, peer.speed, stage
        self.waiting = {True: deque(), False: deque()}  # backward first
        self.current: _Task | None = None
        self.serves, self.began = False, 0.0
        self.life = 0  # grows when what it was doing is void

    def take(self) -> list[_Task]:
        """All that it has to do, which it does no more."""
        tasks = [*self.waiting[True], *self.waiting[False]]
        if self.current is not None:
            tasks.append(self.current)
        self.waiting = {True: deque(), False: deque()}
        self.current, self.life = None, self.life + 1
        return tasks


def swarm(
    peers: Sequence[Peer],
    *,
    n_stages: int,
    steps: int,
    microbatches: int,
    in_flight: int,
    rebalance_every: float | None = 300.0,
    download_seconds: float = 0.0,
    reduce_seconds: float = 0.0,
    delayed: bool = True,
) -> SwarmRun:
    """Runs optimizer steps over a swarm.

    Args:
      peers: all that are ever there.
      n_stages: P, of the model.
      steps: of the optimizer.
      microbatches: of a step.
      in_flight: microbatches on their way at a time; several for each peer hide waits.
      rebalance_every: T, seconds; None never rebalances.
      download_seconds: until a peer that joins or moves has its stage's weights.
      reduce_seconds: of the sum over a stage's peers at the end of a step.
      delayed: whether microbatches of a step begin while the last ones of the step before
        are on their way, with parameters that are one step old; else the pipeline runs
        empty at the end of each step.

    Returns:
      The log, with throughput and bound.

    Raises:
      TypeError, ValueError: a number out of bounds, a stage that nobody serves at first.
      RuntimeError: a stage has lost all of its peers and gets none any more.

    Example:
      >>> peers = [Peer(0, 1.0), Peer(0, 3.0), Peer(1, 2.0), Peer(1, 2.0)]
      >>> found = swarm(
      ...     peers, n_stages=2, steps=1, microbatches=400, in_flight=12
      ... )
      >>> found.bound, 0.9 < found.throughput / found.bound <= 1.0
      (4.0, True)
    """
    checks.whole("n_stages", n_stages, least=1)
    checks.whole("steps", steps, least=1)
    checks.whole("microbatches", microbatches, least=1)
    checks.whole("in_flight", in_flight, least=1)
    if rebalance_every is not None:
        checks.real("rebalance_every", rebalance_every, above=0)
    checks.real("download_seconds", download_seconds, least=0)
    checks.real("reduce_seconds", reduce_seconds, least=0)
    checks.flag("delayed", delayed)
    _check_peers(peers, n_stages)
    state = _Swarm(peers, n_stages, in_flight, rebalance_every, download_seconds)
    state.plan(steps, microbatches, reduce_seconds, delay=1 if delayed else 0)
    state.run()
    return SwarmRun(
        done=state.done,
        steps=state.ends,
        bound=state.capacity / state.now,
        throughput=steps * microbatches / state.now,
        moves=state.moves,
        lost=sum(not one.counts for one in state.done) + state.interrupted,
    )


def _check_peers(peers: Sequence[Peer], n_stages: int) -> None:
    """Refuses peers that make no sense, and stages without one."""
    for number, peer in enumerate(peers):
        name = f"peers[{number}]"
        checks.instance(name, peer, Peer, "write systems.Peer(stage=0, speed=1.0)")
        if peer.stage is not None:
            checks.whole(f"{name}.stage", peer.stage, least=0, most=n_stages - 1)
        checks.real(f"{name}.speed", peer.speed, above=0)
        checks.real(f"{name}.joins", peer.joins, least=0)
        if peer.leaves is not None:
            checks.real(f"{name}.leaves", peer.leaves, above=peer.joins)
    served = {peer.stage for peer in peers if peer.joins == 0}
    if missing := set(range(n_stages)) - served:
        raise ValueError(
            f"expected a peer at the beginning for each of {n_stages} stages, got none "
            f"for stage {min(missing)}"
        )


class _Swarm:
    """The state of the simulation."""

    def __init__(self, peers, n_stages, in_flight, rebalance_every, download_seconds):
        self.peers, self.n_stages, self.in_flight = peers, n_stages, in_flight
        self.rebalance_every, self.download = rebalance_every, download_seconds
        self.now, self.capacity, self.interrupted = 0.0, 0.0, 0
        self.machines: dict[int, _Machine] = {}
        self.wirings = [Wiring() for _ in range(n_stages)]
        self.stranded: list[list[_Task]] = [[] for _ in range(n_stages)]
        self.done: list[Done] = []
        self.moves: list[tuple[float, int, int, int]] = []
        self.events: list[tuple[float, int, str, Any]] = []
        self._order = itertools.count()
        self.ends: list[float] = []
        self._passed: dict[_Task, int] = {}  # of steps that go on: place in `done`
        self._sent: dict[_Task, float] = {}
        self._held_by: dict[tuple[int, int], int] = {}  # (microbatch, stage): forward's
        self._next = 0  # microbatch
        self._on_way: set[int] = set()
        self._open: dict[int, int] = {}  # step: microbatches that are not whole
        for number, peer in enumerate(peers):
            if peer.joins == 0:
                self._join(number, delay=0.0)
            else:
                self._at(peer.joins, "join", number)
            if peer.leaves is not None:
                self._at(peer.leaves, "fail", number)
        if rebalance_every is not None:
            self._at(rebalance_every, "rebalance", None)

    # The clock

    def _at(self, second: float, kind: str, what: Any) -> None:
        heapq.heappush(self.events, (second, next(self._order), kind, what))

    def _go_to(self, second: float) -> None:
        """Moves the clock, and counts what the slowest stage could have done."""
        self.capacity += (second - self.now) * min(self._speeds())
        self.now = second

    def plan(self, steps: int, size: int, reduce_seconds: float, delay: int) -> None:
        """What is to be done: steps of so many microbatches."""
        self._steps, self._size, self._delay = steps, size, delay
        self._reduce_seconds = reduce_seconds

    def run(self) -> None:
        """The clock until the last step has ended."""
        self._fill()
        while len(self.ends) < self._steps:
            if not self.events or self._waits_for_nothing():
                raise RuntimeError(self._stuck())
            self._next_event()

    def _waits_for_nothing(self) -> bool:
        """Whether a stage is without a peer, and only rebalancing that moves none is left."""
        if any(kind != "rebalance" for _, _, kind, _ in self.events):
            return False
        return not any(len(self.machines_of(s)) > 1 for s in range(self.n_stages))

    def machines_of(self, stage: int) -> list[_Machine]:
        """Who serves a stage."""
        return [m for m in self.machines.values() if m.stage == stage and m.serves]

    def _next_event(self) -> None:
        second, _, kind, what = heapq.heappop(self.events)
        self._go_to(second)
        getattr(self, f"_{kind}")(what)

    def _stuck(self) -> str:
        empty = [s for s in range(self.n_stages) if not len(self.wirings[s])]
        return f"stages {empty} have no peer any more, and none joins or moves there"

    # Work

    def _fill(self) -> None:
        """Lets microbatches in, of the steps that may begin."""
        while self._next < self._steps * self._size:
            step = self._next // self._size
            if len(self._on_way) >= self.in_flight:
                return
            if step > len(self.ends) + self._delay:
                return
            microbatch, self._next = self._next, self._next + 1
            self._open.setdefault(step, self._size)
            self._on_way.add(microbatch)
            self._send(_Task(microbatch, 0, False))

    def _send(self, task: _Task) -> None:
        """Routes a piece of work; backward goes where forward was, if that is there."""
        self._sent[task] = self.now
        wiring = self.wirings[task.stage]
        holder = self._held_by.get((task.microbatch, task.stage), NOBODY)
        if task.backward and holder in wiring.seconds:
            number = holder
        elif len(wiring):
            number = wiring.choose()
        else:
            self.stranded[task.stage].append(task)
            return
        machine = self.machines[number]
        machine.waiting[task.backward].append(task)
        self._begin(machine)

    def _begin(self, machine: _Machine) -> None:
        if machine.current is not None or not machine.serves:
            return
        for backward in (True, False):
            if machine.waiting[backward]:
                machine.current = machine.waiting[backward].popleft()
                share = 1 - FORWARD_SHARE if backward else FORWARD_SHARE
                machine.began = self.now
                end = self.now + share / machine.speed
                self._at(end, "finish", (machine.number, machine.life))
                return

    def _finish(self, what: tuple[int, int]) -> None:
        number, life = what
        machine = self.machines.get(number)
        if machine is None or machine.life != life or machine.current is None:
            return
        task, machine.current = machine.current, None
        self._passed[task] = len(self.done)
        self.done.append(
            Done(
                second=self.now,
                peer=number,
                stage=task.stage,
                microbatch=task.microbatch,
                backward=task.backward,
            )
        )
        if not task.backward:
            self._held_by[task.microbatch, task.stage] = number
            seconds = (self.now - machine.began) / FORWARD_SHARE
            self.wirings[task.stage].observe(number, seconds)
        self._after(task)
        self._begin(machine)

    def _after(self, task: _Task) -> None:
        """What a piece of work makes possible."""
        microbatch, stage = task.microbatch, task.stage
        if not task.backward and stage < self.n_stages - 1:
            following = _Task(microbatch, stage + 1, False)
        elif not task.backward:
            following = _Task(microbatch, stage, True)
        elif stage > 0:
            following = _Task(microbatch, stage - 1, True)
        else:
            following = None
        if following is not None and following not in self._passed:
            if following not in self._sent:
                self._send(following)
            return
        self._check_whole(microbatch)

    def _check_whole(self, microbatch: int) -> None:
        """Lets the next one in, if this one has passed all stages."""
        stages = range(self.n_stages)
        if microbatch not in self._on_way:
            return
        if all(_Task(microbatch, s, True) in self._passed for s in stages):
            self._on_way.discard(microbatch)
            step = microbatch // self._size
            self._open[step] -= 1
            if self._open[step] == 0:
                self._at(self.now + self._reduce_seconds, "reduced", step)
                self._forget(step)
            self._fill()

    def _forget(self, step: int) -> None:
        """The sums of a step are taken: who fails from now on takes nothing along."""

        def is_other(task: _Task) -> bool:
            return task.microbatch // self._size != step

        self._passed = {t: p for t, p in self._passed.items() if is_other(t)}
        self._sent = {t: s for t, s in self._sent.items() if is_other(t)}
        del self._open[step]

    def _reduced(self, step: int) -> None:
        self.ends.append(self.now)
        self._fill()

    # Peers

    def _speeds(self) -> list[float]:
        """Microbatches a second of each stage, by those that serve it."""
        speeds = [0.0] * self.n_stages
        for machine in self.machines.values():
            if machine.serves:
                speeds[machine.stage] += machine.speed
        return speeds

    def _join(self, number: int, delay: float | None = None) -> None:
        peer = self.peers[number]
        speeds = self._speeds()
        slowest = min(range(self.n_stages), key=speeds.__getitem__)
        stage = slowest if peer.stage is None else peer.stage
        self.machines[number] = _Machine(number, peer, stage)
        self._serve_after(number, self.download if delay is None else delay)

    def _serve_after(self, number: int, seconds: float) -> None:
        if seconds == 0:
            self._ready((number, self.machines[number].life))
        else:
            what = (number, self.machines[number].life)
            self._at(self.now + seconds, "ready", what)

    def _ready(self, what: tuple[int, int]) -> None:
        number, life = what
        machine = self.machines.get(number)
        if machine is None or machine.life != life:
            return
        machine.serves = True
        self.wirings[machine.stage].join(number)
        waiting, self.stranded[machine.stage] = self.stranded[machine.stage], []
        for task in waiting:
            self._send(task)

    def _fail(self, number: int) -> None:
        """A peer is gone, with its gradients of this step."""
        machine = self.machines.pop(number, None)
        if machine is None:
            return
        self.wirings[machine.stage].leave(number)
        again = machine.take()
        self.interrupted += len(again)
        for task, place in list(self._passed.items()):
            # Activations that it sent on are kept; gradients that it held are not.
            if task.backward and self.done[place].peer == number:
                self.done[place] = self.done[place]._replace(counts=False)
                del self._passed[task]
                self._reopen(task.microbatch)
                again.append(task)
        for task in again:
            self._send(task)

    def _reopen(self, microbatch: int) -> None:
        """A microbatch that was whole is so no more."""
        if microbatch not in self._on_way:
            self._on_way.add(microbatch)
            self._open[microbatch // self._size] += 1

    def _rebalance(self, _: Any) -> None:
        self._at(self.now + self.rebalance_every, "rebalance", None)
        speeds, queues = self._speeds(), self._queues()
        target = max(range(self.n_stages), key=queues.__getitem__)
        source = max(range(self.n_stages), key=speeds.__getitem__)
        if source == target:
            return
        movable = self.machines_of(source)

        def slowest_with(machine: _Machine) -> float:
            after = list(speeds)
            after[source] -= machine.speed
            after[target] += machine.speed
            return min(after)

        best = max(movable, key=slowest_with)
        if slowest_with(best) > min(speeds) and len(movable) > 1:
            self._move(best, target)

    def _queues(self) -> list[float]:
        """Seconds of work that wait at each stage; without a peer, without end."""
        waiting = [float(len(tasks)) for tasks in self.stranded]
        for machine in self.machines.values():
            backward, forward = (len(machine.waiting[b]) for b in (True, False))
            seconds = (1 - FORWARD_SHARE) * backward + FORWARD_SHARE * forward
            waiting[machine.stage] += seconds
        speeds = self._speeds()
        return [
            work / speed if speed else float("inf")
            for work, speed in zip(waiting, speeds, strict=True)
        ]

    def _move(self, machine: _Machine, target: int) -> None:
        """A peer changes its stage; its gradients stay with a neighbour there."""
        self.moves.append((self.now, machine.number, machine.stage, target))
        self.wirings[machine.stage].leave(machine.number)
        again = machine.take()
        source, machine.stage, machine.serves = machine.stage, target, False
        heir = next(iter(self.wirings[source].seconds))
        for task, place in self._passed.items():
            one = self.done[place]
            if task.backward and one.peer == machine.number and one.stage == source:
                self.done[place] = one._replace(peer=heir)
        for task in again:
            self._send(task)
        self._serve_after(machine.number, self.download)
