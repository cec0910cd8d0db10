"""The events of a swarm in the order of time: `swarm` asks for them."""

import heapq
import itertools
from collections.abc import Sequence
from typing import Any

from fedjax_fm.systems.swarm_parts import (
    FORWARD_SHARE,
    NOBODY,
    Done,
    Machine,
    Peer,
    Task,
)
from fedjax_fm.systems.wiring import Wiring


class Events:
    """The state of the simulation."""

    def __init__(
        self,
        peers: Sequence[Peer],
        n_stages: int,
        in_flight: int,
        rebalance_every: float | None,
        download_seconds: float,
    ):
        self.peers, self.n_stages, self.in_flight = peers, n_stages, in_flight
        self.rebalance_every, self.download = rebalance_every, download_seconds
        self.now, self.capacity, self.interrupted = 0.0, 0.0, 0
        self.machines: dict[int, Machine] = {}
        self.wirings = [Wiring() for _ in range(n_stages)]
        self.stranded: list[list[Task]] = [[] for _ in range(n_stages)]
        self.done: list[Done] = []
        self.moves: list[tuple[float, int, int, int]] = []
        self.events: list[tuple[float, int, str, Any]] = []
        self._order = itertools.count()
        self.ends: list[float] = []
        self._passed: dict[Task, int] = {}  # of steps that go on: place in `done`
        self._sent: set[Task] = set()
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

    def machines_of(self, stage: int) -> list[Machine]:
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
            self._send(Task(microbatch, 0, False))

    def _send(self, task: Task) -> None:
        """Routes a piece of work; backward goes where forward was, if that is there."""
        self._sent.add(task)
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

    def _begin(self, machine: Machine) -> None:
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

    def _after(self, task: Task) -> None:
        """What a piece of work makes possible."""
        microbatch, stage = task.microbatch, task.stage
        if not task.backward and stage < self.n_stages - 1:
            following = Task(microbatch, stage + 1, False)
        elif not task.backward:
            following = Task(microbatch, stage, True)
        elif stage > 0:
            following = Task(microbatch, stage - 1, True)
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
        if all(Task(microbatch, s, True) in self._passed for s in stages):
            self._on_way.discard(microbatch)
            step = microbatch // self._size
            self._open[step] -= 1
            if self._open[step] == 0:
                self._at(self.now + self._reduce_seconds, "reduced", step)
                self._forget(step)
            self._fill()

    def _forget(self, step: int) -> None:
        """The sums of a step are taken: who fails from now on takes nothing along."""

        def is_other(task: Task) -> bool:
            return task.microbatch // self._size != step

        self._passed = {t: p for t, p in self._passed.items() if is_other(t)}
        self._sent = {task for task in self._sent if is_other(task)}
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
        self.machines[number] = Machine(number, peer, stage)
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
        assert self.rebalance_every is not None  # or there would be no such event
        self._at(self.now + self.rebalance_every, "rebalance", None)
        speeds, queues = self._speeds(), self._queues()
        target = max(range(self.n_stages), key=queues.__getitem__)
        source = max(range(self.n_stages), key=speeds.__getitem__)
        if source == target:
            return
        movable = self.machines_of(source)

        def slowest_with(machine: Machine) -> float:
            after = list(speeds)
            after[source] -= machine.speed
            after[target] += machine.speed
            return min(after)

        if not movable:
            return
        best = max(movable, key=slowest_with)
        helps = slowest_with(best) > min(speeds) or not speeds[target]
        if helps and len(movable) > 1:
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

    def _move(self, machine: Machine, target: int) -> None:
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
