"""The state of a run: what people hold, and what passes from round to round.

Clients' states lie on the devices, leaves [N, ...], or in host memory, from where the
cohort's rows travel each round.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.types import Algorithm, Tree


class RoundState(NamedTuple):
    """Everything that passes from round to round."""

    server: Any
    # the algorithm's state of each client, leaves [N, ...]; a few rows more where devices
    # share them; a `HostStore` of these and the uplinks' where they are spilled
    clients: Any
    uplinks: tuple  # per exchange: the channel's state of each client, likewise
    downlinks: tuple  # per exchange: the channel's state at the server
    sampler: Any
    round: jax.Array  # i32[]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SimulationState:
    """The whole state of a run, a pytree.

    Attributes:
      carry: everything that passes from round to round.
      key: of the run; names every random number of it.
      algorithm: whose state it is.
    """

    carry: RoundState
    key: jax.Array
    algorithm: Algorithm = field(metadata={"static": True})

    @property
    def delta(self) -> Tree:
        """The server's trainable tree."""
        return self.algorithm.delta(self.carry.server)

    @property
    def round(self) -> int:
        """Rounds done so far."""
        return int(self.carry.round)


# Clients' states in host memory


class HostStore(NamedTuple):
    """States of all N clients on the host; a client's own is made when it first takes part.

    Rounds write into it in place: a state whose rounds have gone on is used up, see
    `Simulator.run`.
    """

    # np arrays [N, ...]; pages of clients that never took part are not backed by memory
    rows: Tree
    touched: np.ndarray  # bool[N]
    first_delta: Tree  # the trainable tree of round 0, from which first states are made
    rounds: np.ndarray  # i64[1]: rounds that the store has seen

    @classmethod
    def empty(cls, shapes: Tree, n_clients: int, first_delta: Tree) -> "HostStore":
        """For states of these shapes, all of them still to be made.

        Args:
          shapes: of one client's rows.
          n_clients: N.
          first_delta: the trainable tree of round 0.
        """

        def zeros(shape):
            return np.zeros((n_clients, *shape.shape), shape.dtype)

        return cls(
            rows=jax.tree.map(zeros, shapes),
            touched=np.zeros(n_clients, bool),
            first_delta=first_delta,
            rounds=np.zeros(1, np.int64),
        )

    def gather(self, ids: np.ndarray) -> tuple[Tree, np.ndarray]:
        """Copies of these clients' rows.

        Args:
          ids: i32[C].

        Returns:
          (rows [C, ...], touched bool[C]).
        """
        return jax.tree.map(lambda x: x[ids], self.rows), self.touched[ids]

    def scatter(self, ids: np.ndarray, rows: Tree) -> None:
        """Writes rows in place and counts a round.

        Args:
          ids: i32[n].
          rows: leaves [n, ...] or longer.
        """

        def put(whole: np.ndarray, new: Any) -> None:
            whole[ids] = np.asarray(new)[: len(ids)]

        jax.tree.map(put, self.rows, rows)
        self.touched[ids] = True
        self.rounds[0] += 1


def is_spilled(carry: RoundState) -> bool:
    """Whether clients' states lie in host memory."""
    return isinstance(carry.clients, HostStore)


def with_first_states(
    rows: Tree, touched: jax.Array, ids: jax.Array, make: Callable[[jax.Array], Tree]
) -> Tree:
    """The rows of a cohort, those of clients that are new made now.

    Args:
      rows: leaves [C, ...].
      touched: bool[C], who was here before.
      ids: i32[C].
      make: `id -> row`, a client's state before its first round.
    """
    fresh = jax.vmap(make)(ids)

    def choose(old, new):
        was_here = touched.reshape(-1, *([1] * (old.ndim - 1)))
        return jnp.where(was_here, old, new)

    return jax.tree.map(choose, rows, fresh)


@functools.cache
def all_first_rows(sharding: Any) -> Callable:
    """`(first_rows, delta, ids i32[N]) -> states [N, ...]`, compiled once for all seeds."""

    def make(first_rows: Any, delta: Tree, ids: jax.Array) -> Tree:
        make_one = functools.partial(first_rows, delta)
        return jax.vmap(make_one)(ids)

    return jax.jit(make, out_shardings=sharding)


def row_of(store: Tree, client: jax.Array, place: Any) -> Tree:
    """One client's states.

    Args:
      store: leaves [N, ...], on the devices.
      client: i32[].
      place: where the row goes; None: where JAX has it.
    """
    return _row_at(place)(store, client)


@functools.cache
def _row_at(place: Any) -> Callable:
    def row(store: Tree, client: jax.Array) -> Tree:
        return jax.tree.map(lambda x: x[client], store)

    return jax.jit(row, out_shardings=place)
