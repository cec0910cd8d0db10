"""The compiled ways through many rounds for one layout, with the operands that stay.

Backbone and data.
"""

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm.engine.data import DeviceData
from fedjax_fm.engine.devices import compiler_options, over_model, shared_by_cores
from fedjax_fm.engine.drive import ROUNDS_PER_DISPATCH, HostLoop, fused
from fedjax_fm.engine.parts import NO_CLIENT, Engine, RoundState
from fedjax_fm.engine.store import HostStore
from fedjax_fm.population.population import Population
from fedjax_fm.types import Sampler, Tree


class Programs:
    """Runs rounds: fused on the device where all is there, else one by one with the
    host between them.

    Args:
      data: the whole population, or None to stream every cohort.
    """

    def __init__(
        self,
        engine: Engine,
        sampler: Sampler,
        population: Population,
        backbone: Tree,
        data: DeviceData | None,
    ):
        self.engine, self.sampler, self.population = engine, sampler, population
        self.everywhere = NamedSharding(engine.mesh, P())
        self.backbone = jax.device_put(
            shared_by_cores(backbone), over_model(backbone, engine.mesh)
        )
        self.data = (
            None
            if data is None
            else jax.device_put(shared_by_cores(data), self.everywhere)
        )
        # Only the carry is donated: what `run` hands in is a copy, or was given to it.
        self.fused = jax.jit(
            functools.partial(fused, engine, sampler),
            donate_argnums=0,
            compiler_options=compiler_options(),
        )
        self.loop = HostLoop(engine, sampler, population, self.data, self.everywhere)

    def of(self, engine: Engine) -> "Programs":
        """The same for another engine of the same layout; nothing is moved."""
        return Programs(engine, self.sampler, self.population, self.backbone, self.data)

    def with_data(
        self, engine: Engine, population: Population, data: DeviceData | None
    ) -> "Programs":
        """The same for other data; what is compiled is kept where the engine is the same."""
        other = self if engine == self.engine else self.of(engine)
        other = copy.copy(other)
        other.population = population
        other.data = (
            None
            if data is None
            else jax.device_put(shared_by_cores(data), self.everywhere)
        )
        other.loop = other.loop.with_data(population, other.data)
        return other

    def placed(self, state: RoundState) -> RoundState:
        """The state on all devices, clients' states where the engine keeps them.

        A spilled store stays where it is.
        """
        stores = (state.clients, state.uplinks)
        if not isinstance(state.clients, HostStore):
            stores = jax.device_put(stores, self.engine.state_sharding)
        placed = jax.device_put(state._replace(clients=(), uplinks=()), self.everywhere)
        return placed._replace(clients=stores[0], uplinks=stores[1])

    def run(
        self,
        state: RoundState,
        rounds: int,
        key: jax.Array,
        first_rows: Any,
        donate: bool = False,
    ) -> tuple[RoundState, list[tuple[Any, int]], int]:
        """Up to `rounds` rounds, none after one that goes wrong.

        Args:
          donate: lets the rounds take over the clients' states, which are used up. Else
            they work on a copy, as they do in any case for the rest of the state, which
            may still be the caller's.

        Returns:
          (state, [(metrics with a leading axis, rounds of it that count)], first bad
          client or a code of parts.py).
        """
        state = self.placed(state)
        copied = jax.tree.map(
            lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x,
            state._replace(clients=(), uplinks=()),
        )
        stores = (state.clients, state.uplinks)
        if not donate and not isinstance(state.clients, HostStore):
            stores = jax.tree.map(jnp.copy, stores)
        state = copied._replace(clients=stores[0], uplinks=stores[1])
        if (
            isinstance(state.clients, HostStore)
            or self.data is None
            or self.engine.parallel == "pmap"
        ):
            state, found, bad = self.loop.run(
                state, self.backbone, rounds, key, first_rows
            )
            stacked = (
                jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *found)
                if found
                else None
            )
            return state, [(stacked, len(found))] if found else [], bad
        buffers: list[tuple[Any, int]] = []
        done, bad = 0, NO_CLIENT
        while done < rounds and bad == NO_CLIENT:
            n = min(rounds - done, ROUNDS_PER_DISPATCH)
            state, buffer, completed, bad = self.fused(
                state, self.backbone, self.data, jnp.int32(n), key
            )
            buffers.append((buffer, int(completed)))
            done, bad = done + int(completed), int(bad)
        return state, buffers, bad

    def who_failed(
        self, state: RoundState, bad: int, key: jax.Array, first_rows: Any
    ) -> int:
        """The client that made the round after `state` go wrong, given what that round said.

        Rounds may search the sum of the uploads for NaN, which does not tell whose it
        was: here the round is done once more and every upload is searched. SOMEBODY if
        no upload is to blame, but their sum.
        """
        if not any(map(self.engine.sum_tells, self.engine.exchanges)):
            return bad
        engine = self.engine._replace(looks_at_each=True)
        _, _, bad = self.of(engine).run(state, 1, key, first_rows)
        return bad
