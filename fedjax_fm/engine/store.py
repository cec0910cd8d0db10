"""Clients' states that do not fit on the device.

In host memory, the cohort's rows travel each round.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.types import Tree


class HostStore(NamedTuple):
    """States of all N clients on the host; a client's own is made when it first takes part.

    Rounds write into it in place: a state whose rounds have gone on is used up, see
    `Simulator.run`.
    """

    rows: Tree  # np arrays [N, ...]; pages of clients that never took part are not backed by memory
    touched: np.ndarray  # bool[N]
    start: Tree  # the trainable tree of round 0, from which first states are made
    rounds: np.ndarray  # i64[1]: rounds that the store has seen

    @classmethod
    def empty(cls, shapes: Tree, n_clients: int, start: Tree) -> "HostStore":
        """For states of these shapes, all of them still to be made."""
        rows = jax.tree.map(lambda s: np.zeros((n_clients, *s.shape), s.dtype), shapes)
        return cls(rows, np.zeros(n_clients, bool), start, np.zeros(1, np.int64))

    def gather(self, ids: np.ndarray) -> tuple[Tree, np.ndarray]:
        """(rows [C, ...], touched bool[C]) as copies."""
        return jax.tree.map(lambda x: x[ids], self.rows), self.touched[ids]

    def scatter(self, ids: np.ndarray, rows: Tree) -> None:
        """Writes rows [len(ids), ...] in place and counts a round."""

        def put(whole: np.ndarray, new: Any) -> None:
            whole[ids] = np.asarray(new)[: len(ids)]

        jax.tree.map(put, self.rows, rows)
        self.touched[ids] = True
        self.rounds[0] += 1


def with_first_states(
    rows: Tree, touched: jax.Array, ids: jax.Array, make: Callable[[jax.Array], Tree]
) -> Tree:
    """`rows` where the client was here before, else `make(id)`."""
    fresh = jax.vmap(make)(ids)

    def choose(old, new):
        return jnp.where(touched.reshape(-1, *([1] * (old.ndim - 1))), old, new)

    return jax.tree.map(choose, rows, fresh)
