"""What passes between the parts of the engine, on one page."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm.channels.identity import identity
from fedjax_fm.engine.data import DeviceData
from fedjax_fm.engine.devices import CLIENTS
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

NO_CLIENT = jnp.iinfo(jnp.int32).max
SOMEBODY = (
    NO_CLIENT - 1
)  # the sum of the uploads is not finite; whose upload it was, a second look tells
OVERFLOW = NO_CLIENT - 2  # a sampler drew more clients than its capacity
OUTSIDE = NO_CLIENT - 3  # a sampler drew an id that no client has


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
    looks_at_each: bool = False
    # whether every device holds its part of the clients' states instead of all of them
    shares_states: bool = False

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All of them in a row, those inside a `Repeat` once."""
        groups = self.algorithm.exchanges
        return tuple(
            e
            for group in groups
            for e in (group.exchanges if isinstance(group, Repeat) else (group,))
        )

    @property
    def state_sharding(self) -> NamedSharding:
        """Where the clients' states lie."""
        return NamedSharding(self.mesh, P(CLIENTS) if self.shares_states else P())

    @property
    def all_alike(self) -> bool:
        """Whether every client makes as many local steps as any other, in every round."""
        return self.n_min == self.n_max and self.behaviour.most_steps is None

    def sum_tells(self, exchange: Exchange) -> bool:
        """Whether NaN in an upload is NaN in the sum, so that it is enough to search that.

        Once, not once a client.
        """
        return exchange.reduce.shows_nan and self.uplink == identity()


class RoundState(NamedTuple):
    """Everything that passes from round to round."""

    server: Any
    # the algorithm's state of each client, leaves [N, ...]; a few rows more where
    # devices share them
    clients: Any
    uplinks: tuple  # per exchange: the channel's state of each client, likewise
    downlinks: tuple  # per exchange: the channel's state at the server
    sampler: Any
    round: jax.Array  # i32[]


class Cohort(NamedTuple):
    """Who takes part, and where their examples and their states lie (at their ids,
    where whole stores are on device).

    Arrays of jax or numpy.
    """

    ids: Any  # i32[C]; those past n_active are ignored
    n_active: Any  # i32[]
    data_places: Any  # i32[C]
    state_places: Any  # i32[C]


class Shared(NamedTuple):
    """What every client of an exchange sees, whole on every device."""

    server: Any
    message: Tree
    backbone: Tree
    data: DeviceData
    cohort: Cohort
    round: jax.Array  # i32[]
    key: jax.Array  # the round's, as key data
    repeat: jax.Array  # i32[], passage of a `Repeat`
    passage_key: (
        jax.Array
    )  # of this passage, as key data; outside of a `Repeat` the round's


class Slots(NamedTuple):
    """A dealt cohort, one client a slot.

    Leaves [D, n_blocks, W, ...]; on a device [n_blocks, W, ...]; in a client [...].
    """

    number: jax.Array  # i32: which of the cohort; C for an empty slot
    active: jax.Array  # bool
    state: Any  # the algorithm's
    wire: Any  # the uplink channel's


class Totals(NamedTuple):
    """What blocks and devices add up."""

    contribution: Tree  # from Reduce.lift; () where the reduction keeps each
    metrics: dict[str, tuple[jax.Array, jax.Array]]  # sums and counts
    n_started: jax.Array  # i32[], clients that were sent the message
    n_clients: jax.Array  # i32[], clients whose upload arrived
    uplink: (
        jax.Array
    )  # u32[3], bytes that depend on data, as `digits`; () where shapes tell them
    downlink: jax.Array


class Result(NamedTuple):
    """What one exchange leaves behind."""

    totals: Totals  # sums over the cohort
    # (what Reduce.lift gave, whether it arrived bool), leaves as in Slots; () where the
    # reduction sums
    kept: Tree
    bad: (
        jax.Array
    )  # i32[], smallest id of a client that was not finite, NO_CLIENT if there is none
    state: Any  # as in Slots
    wire: Any  # as in Slots


def digits(n: jax.Array) -> jax.Array:
    """u32[] -> u32[3] in base 2048.

    Sums of them over two million clients do not wrap, sums of bytes would.
    """
    n = jnp.asarray(n).astype(jnp.uint32)
    return jnp.stack([n & 2047, (n >> 11) & 2047, n >> 22])


def of_digits(sums: Any) -> Any:
    """i64[...], the sum whose digits' sums are [..., 3]; on the host."""
    return np.asarray(sums, np.int64) @ np.array([1, 1 << 11, 1 << 22])
