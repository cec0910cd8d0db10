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

from collections.abc import Sequence
from typing import NamedTuple

from fedjax_fm import checks
from fedjax_fm.systems.swarm_events import Events
from fedjax_fm.systems.swarm_parts import Done, Peer


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
    state = Events(peers, n_stages, in_flight, rebalance_every, download_seconds)
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
