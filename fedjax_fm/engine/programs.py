"""The compiled ways through many rounds for one layout, with the operands that stay: backbone and data."""

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
from fedjax_fm.engine.parts import NO_CLIENT, SOMEBODY, Engine, RoundState
from fedjax_fm.engine.store import HostStore
from fedjax_fm.population.population import Population
from fedjax_fm.types import Sampler, Tree


class Programs:
    """Runs rounds: fused on the device where all is there, else one by one with the host between them.

    Args:
      data: the whole population, or None to stream every cohort.
    """

    def __init__(
        self, engine: Engine, sampler: Sampler, population: Population, backbone: Tree, data: DeviceData | None
    ):
        self.engine, self.sampler, self.population = engine, sampler, population
        self.everywhere = NamedSharding(engine.mesh, P())
        self.backbone = jax.device_put(shared_by_cores(backbone), over_model(backbone, engine.mesh))
        self.data = None if data is None else jax.device_put(shared_by_cores(data), self.everywhere)
        # Only the carry is donated: `run` hands in its own copy.
        self.fused = jax.jit(
            functools.partial(fused, engine, sampler), donate_argnums=0, compiler_options=compiler_options()
        )
        self.loop = HostLoop(engine, sampler, population, self.data, self.everywhere)

    def placed(self, state: RoundState) -> RoundState:
        """The state on all devices; a spilled store stays where it is."""
        if not isinstance(state.clients, HostStore):
            return jax.device_put(state, self.everywhere)
        return jax.device_put(state._replace(clients=()), self.everywhere)._replace(clients=state.clients)

    def run(
        self, state: RoundState, rounds: int, key: jax.Array, first_rows: Any
    ) -> tuple[RoundState, list[tuple[Any, int]], int]:
        """Up to `rounds` rounds, none after one that goes wrong.

        Returns:
          (state, [(metrics with a leading axis, rounds of it that count)], first bad client or a code of parts.py).
        """
        state = self.placed(state)
        if isinstance(state.clients, HostStore) or self.data is None or self.engine.parallel == "pmap":
            state, found, bad = self.loop.run(state, self.backbone, rounds, key, first_rows)
            stacked = jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *found) if found else None
            return state, [(stacked, len(found))] if found else [], bad
        state = jax.tree.map(jnp.copy, state)
        buffers: list[tuple[Any, int]] = []
        done, bad = 0, NO_CLIENT
        while done < rounds and bad == NO_CLIENT:
            n = min(rounds - done, ROUNDS_PER_DISPATCH)
            state, buffer, completed, bad = self.fused(state, self.backbone, self.data, jnp.int32(n), key)
            buffers.append((buffer, int(completed)))
            done, bad = done + int(completed), int(bad)
        return state, buffers, bad

    def who_failed(self, state: RoundState, bad: int, key: jax.Array, first_rows: Any) -> int:
        """The client that made the round after `state` go wrong, given what that round said.

        Rounds may search the sum of the uploads for NaN, which does not tell whose it was: here the round is done once more
        and every upload is searched. SOMEBODY if no upload is to blame, but their sum.
        """
        if not any(map(self.engine.looks_at_sum, self.engine.exchanges)):
            return bad
        engine = self.engine._replace(looks_at_each=True)
        careful = Programs(engine, self.sampler, self.population, self.backbone, self.data)
        _, _, bad = careful.run(state, 1, key, first_rows)
        return SOMEBODY if bad == NO_CLIENT else bad
