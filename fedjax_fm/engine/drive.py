"""Two ways through many rounds.

Fused on the device, or one at a time with the host between them.
"""

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.engine.data import DeviceData
from fedjax_fm.engine.devices import compiler_options
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.parts import NO_CLIENT, Cohort, Engine, RoundState
from fedjax_fm.engine.round import round_step
from fedjax_fm.engine.store import HostStore, with_first_states
from fedjax_fm.engine.stream import Draw, Prefetch, take
from fedjax_fm.population.population import Population
from fedjax_fm.types import Sampler, Tree

# Rounds per dispatch: the length of the metrics buffer, so that any number of rounds
# reuses one program.
ROUNDS_PER_DISPATCH = 128


def fused(
    engine: Engine,
    sampler: Sampler,
    state: RoundState,
    backbone: Tree,
    data: DeviceData,
    n_rounds,
    key,
):
    """Up to `n_rounds` (traced, at most ROUNDS_PER_DISPATCH) rounds.

    Stops before one that goes wrong.

    Returns:
      (state, metrics [ROUNDS_PER_DISPATCH, ...], rounds done, first bad client).
    """

    @jax.jit  # its trace is used twice: for the shapes of the metrics and in the loop
    def one_round(state: RoundState):
        round_key = jax.random.fold_in(key, state.round)
        ids, n_active, sampler_state = sampler.draw(
            state.sampler, derive(round_key, Purpose.COHORT)
        )
        after, metrics, bad = round_step(
            engine,
            backbone,
            data,
            state,
            Cohort(ids=ids, n_active=n_active, data_places=ids, state_places=ids),
            round_key,
        )
        return after._replace(sampler=sampler_state), metrics, bad

    def body(carry):
        i, state, buffer, _ = carry
        after, metrics, bad = one_round(state)
        good = bad == NO_CLIENT
        # The sampler stays with the rest at the last good round.
        after = after._replace(
            sampler=jax.tree.map(
                lambda a, b: jnp.where(good, a, b), after.sampler, state.sampler
            )
        )
        return (
            i + good,
            after,
            jax.tree.map(lambda b, m: b.at[i].set(m), buffer, metrics),
            bad,
        )

    metrics = jax.eval_shape(one_round, state)[1]
    buffer = jax.tree.map(
        lambda m: jnp.zeros((ROUNDS_PER_DISPATCH, *m.shape), m.dtype), metrics
    )
    start = (jnp.int32(0), state, buffer, jnp.int32(NO_CLIENT))
    done, state, buffer, bad = jax.lax.while_loop(
        lambda c: (c[0] < n_rounds) & (c[3] == NO_CLIENT), body, start
    )
    return state, buffer, done, bad


class HostLoop:
    """Rounds one at a time: for examples that are streamed in, states that are spilled, or `pmap`.

    Args:
      data: the whole population on the device, or None to stream every cohort.
    """

    def __init__(
        self,
        engine: Engine,
        sampler: Sampler,
        population: Population,
        data: DeviceData | None,
        sharding,
    ):
        self.engine, self.sampler, self.population, self.data = (
            engine,
            sampler,
            population,
            data,
        )
        self._sharding = sharding
        self._draw = jax.jit(sampler.draw)
        step = functools.partial(_step, engine)
        # pmap dispatches by itself; what lies around it runs operation by operation.
        compiled = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
        self.step = step if engine.parallel == "pmap" else compiled

    def with_data(self, population: Population, data: DeviceData | None) -> "HostLoop":
        """The same for other data, with what is compiled."""
        other = copy.copy(self)
        other.population, other.data = population, data
        return other

    def _drawn(self, key: jax.Array, round_index: int, sampler_state: Any) -> Draw:
        round_key = jax.random.fold_in(key, round_index)
        ids, n_active, after = self._draw(
            sampler_state, derive(round_key, Purpose.COHORT)
        )
        ids, n_active = np.asarray(ids), int(n_active)
        if self.data is not None:
            return Draw(ids=ids, n_active=n_active, sampler=after, data=None)
        # Clients past n_active hold no examples: nothing of theirs is read.
        wanted = ids[: min(n_active, len(ids))]
        inside = wanted[
            (wanted >= 0) & (wanted < self.population.n_clients)
        ]  # the round refuses others
        read = take(self.population, inside)
        offsets = np.pad(
            read.offsets, (0, len(ids) + 1 - len(read.offsets)), mode="edge"
        )
        return Draw(
            ids=ids,
            n_active=n_active,
            sampler=after,
            data=jax.device_put(DeviceData(read.arrays, offsets), self._sharding),
        )

    def run(
        self,
        state: RoundState,
        backbone: Tree,
        rounds: int,
        key: jax.Array,
        first_rows: Any,
    ):
        """(state, [metrics of a round], first bad client) of up to `rounds` rounds.

        Uses `state` up.
        """
        found: list[Any] = []
        first = int(state.round)
        draw = functools.partial(self._drawn, key)
        with Prefetch(draw, first, first + rounds, state.sampler) as coming:
            for index in range(first, first + rounds):
                drawn = coming.take()
                # The sampler's state is being read by the next draw, so a round may not
                # take its memory.
                given, round_key = (
                    state._replace(sampler=()),
                    jax.random.fold_in(key, index),
                )
                after, metrics, bad = self._one(
                    given, backbone, drawn, round_key, first_rows
                )
                if int(bad) != NO_CLIENT:
                    return (
                        after._replace(sampler=state.sampler),
                        found,
                        int(bad),
                    )  # as it was before the round
                state = after._replace(sampler=drawn.sampler)
                found.append(metrics)
        return state, found, NO_CLIENT

    def _one(
        self,
        state: RoundState,
        backbone: Tree,
        drawn: Draw,
        key: jax.Array,
        first_rows: Any,
    ):
        n, slots = (
            min(drawn.n_active, len(drawn.ids)),
            np.arange(len(drawn.ids), dtype=np.int32),
        )
        data = self.data if drawn.data is None else drawn.data
        store = state.clients if isinstance(state.clients, HostStore) else None
        cohort = Cohort(
            ids=drawn.ids,
            n_active=np.int32(drawn.n_active),
            data_places=drawn.ids if drawn.data is None else slots,
            state_places=drawn.ids if store is None else slots,
        )
        if store is None:
            return self.step(state, backbone, data, cohort, key)
        (clients, uplinks), touched = store.gather(
            np.clip(drawn.ids, 0, len(store.touched) - 1)
        )
        rows = state._replace(clients=clients, uplinks=uplinks)
        after, metrics, bad = self.step(
            rows, backbone, data, cohort, key, touched, store.start, first_rows
        )
        if int(bad) == NO_CLIENT:
            store.scatter(drawn.ids[:n], (after.clients, after.uplinks))
        return after._replace(clients=store, uplinks=()), metrics, bad


def _step(
    engine: Engine,
    state: RoundState,
    backbone,
    data,
    cohort: Cohort,
    key,
    touched=None,
    start=None,
    first_rows=None,
):
    """One round; spilled states of clients that are new are made first, by
    `first_rows(start, id)`.
    """
    if touched is not None and first_rows is not None:
        make = functools.partial(first_rows, start)
        clients, uplinks = with_first_states(
            (state.clients, state.uplinks), touched, cohort.ids, make
        )
        state = state._replace(clients=clients, uplinks=uplinks)
    return round_step(engine, backbone, data, state, cohort, key)
