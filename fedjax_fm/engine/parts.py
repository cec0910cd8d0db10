"""What most parts of the engine pass to each other.

Shapes: N clients in the population, C in a cohort; D devices, each with n_blocks blocks
of W slots.
"""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm.channels.identity import identity
from fedjax_fm.engine.data import DeviceData
from fedjax_fm.engine.devices import CLIENTS
from fedjax_fm.engine.faults import NONE
from fedjax_fm.engine.plan import Plan
from fedjax_fm.types import (
    Algorithm,
    Behaviour,
    Channel,
    Exchange,
    Repeat,
    Setting,
    Tree,
)


class Engine(NamedTuple):
    """What is fixed for a run."""

    algorithm: Algorithm
    setting: Setting
    plan: Plan
    mesh: Mesh
    uplink: Channel
    downlink: Channel
    n_max: int  # examples of the largest client
    n_min: int  # of the smallest
    behaviour: Behaviour = Behaviour()
    parallel: str = "shard_map"
    # whether every upload is searched for NaN, also where the sum would show it
    searches_each: bool = False
    # whether every device holds its part of the clients' states instead of all of them
    shares_states: bool = False

    @property
    def exchanges(self) -> tuple["BoundExchange", ...]:
        """All of them in a row, those inside a `Repeat` once."""
        found = []
        for group in self.algorithm.exchanges:
            inner = group.exchanges if isinstance(group, Repeat) else (group,)
            found.extend(inner)
        return tuple(BoundExchange(self, e, i) for i, e in enumerate(found))

    @property
    def state_sharding(self) -> NamedSharding:
        """Where the clients' states lie."""
        spec = P(CLIENTS) if self.shares_states else P()
        return NamedSharding(self.mesh, spec)

    @property
    def all_alike(self) -> bool:
        """Whether every client makes as many local steps as any other, in every round."""
        return self.n_min == self.n_max and self.behaviour.most_steps is None


class BoundExchange(NamedTuple):
    """An exchange and the run that it belongs to: the one argument of its stages."""

    engine: Engine
    exchange: Exchange
    index: int  # among all exchanges of the algorithm; names keys

    @property
    def sum_shows_nan(self) -> bool:
        """Whether NaN in an upload is NaN in the sum.

        Then it is enough to search the sum: once, not once a client.
        """
        return self.exchange.reduce.shows_nan and self.engine.uplink == identity()


class Cohort(NamedTuple):
    """Who is drawn, and where their examples and their states lie.

    Arrays of jax or numpy. Where whole stores are on the device, clients lie at their ids.
    """

    ids: Any  # i32[C]; those past n_active are ignored
    n_active: Any  # i32[]
    data_places: Any  # i32[C]
    state_places: Any  # i32[C]
    # i32[]: of a round before that the host has not looked at yet; after a fault nothing
    # changes any more
    fault: Any = NONE


class RoundInputs(NamedTuple):
    """What stays as it is throughout a round."""

    backbone: Tree
    data: DeviceData
    cohort: Cohort
    round: jax.Array  # i32[]
    key: jax.Array  # the round's


class Passage(NamedTuple):
    """Which passage of a `Repeat` an exchange is in."""

    number: jax.Array  # i32[]; 0 outside of a `Repeat`
    key: jax.Array  # outside of a `Repeat` the round's


class Shared(NamedTuple):
    """What every client of an exchange sees, whole on every device."""

    server: Any
    message: Tree
    inputs: RoundInputs  # its key as key data
    passage: Passage  # its key as key data


class Slots(NamedTuple):
    """A cohort laid out, one client a slot.

    Leaves [D, n_blocks, W, ...]; on a device [n_blocks, W, ...]; in a client [...].
    """

    number: jax.Array  # i32: which of the cohort; C for an empty slot
    active: jax.Array  # bool: not empty
    state: Any  # the algorithm's, of the client
    uplink: Any  # the uplink channel's, of the client


class Totals(NamedTuple):
    """What blocks and devices add up."""

    contribution: Tree  # from Reduce.lift; () where the reduction keeps each
    metrics: dict[str, tuple[jax.Array, jax.Array]]  # sums and counts
    n_started: jax.Array  # i32[], clients that were sent the message
    n_arrived: jax.Array  # i32[], clients whose upload arrived
    # u32[3], limbs of bytes that the data decide; () where shapes tell them
    uplink_bytes: jax.Array | tuple
    downlink_bytes: jax.Array | tuple


class Result(NamedTuple):
    """What the clients of an exchange leave behind."""

    totals: Totals  # sums over the cohort
    # (contribution, whether it arrived bool), leaves as in Slots; () where they are summed
    stacked: Tree
    fault: jax.Array  # i32[], see faults.py
    state: Any  # as in Slots
    uplink: Any  # as in Slots
