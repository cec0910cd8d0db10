"""What makes a round impossible to finish: found on the device, raised on the host.

A round carries one number, i32[]: the smallest id of a client that was not finite, or a
`Fault`. Ids are smaller than every fault, so that the minimum over clients, blocks and
devices names a client where there is one.
"""

import contextlib
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.types import Tree


class Fault(IntEnum):
    """What a round may say in the place of a client's id."""

    UNKNOWN_CLIENT = 2**31 - 4  # the sampler drew an id that no client has
    COHORT_OVERFLOW = 2**31 - 3  # the sampler drew more clients than its capacity
    SUM = 2**31 - 2  # the sum of the uploads is not finite; whose it was is not known
    NONE = 2**31 - 1


NONE = int(Fault.NONE)


def no_fault() -> jax.Array:
    """i32[] of a round in which nothing has gone wrong."""
    return jnp.int32(NONE)


def is_good(fault: jax.Array) -> jax.Array:
    """bool[]: nothing has gone wrong."""
    return fault == NONE


def fault_of_client(is_wrong: jax.Array, client: jax.Array) -> jax.Array:
    """i32[]: the client's id where something of it is not finite."""
    return jnp.where(is_wrong, client, NONE)


def fault_of_sum(contribution: Tree) -> jax.Array:
    """i32[]: SUM where the sum over the cohort is not finite."""
    is_finite = trees.all_finite(contribution)
    return jnp.where(is_finite, NONE, int(Fault.SUM))


def fault_of_draw(ids: Any, n_active: Any, n_clients: int) -> jax.Array:
    """i32[]: whether the sampler drew what it may.

    Args:
      ids: i32[C], the cohort.
      n_active: i32[], how many of them count.
      n_clients: of the population.
    """
    ids = jnp.asarray(ids)
    drawn = jnp.arange(ids.shape[0]) < n_active
    is_unknown = jnp.any(drawn & ((ids < 0) | (ids >= n_clients)))
    is_overflow = n_active > ids.shape[0]
    overflow = jnp.where(is_overflow, int(Fault.COHORT_OVERFLOW), NONE)
    fault = jnp.where(is_unknown, int(Fault.UNKNOWN_CLIENT), overflow)
    return fault.astype(jnp.int32)


@contextlib.contextmanager
def noted(where: str) -> Iterator[None]:
    """Adds to an error of a method's own code where in a round it happened.

    Args:
      where: "in the client of exchange 0".
    """
    try:
        yield
    except Exception as error:
        error.add_note(f"fedjax_fm: {where}")
        raise


class RoundError(Exception):
    """A round that could not be finished; it took no effect.

    Args:
      message: what went wrong, and what to do.
      state: `SimulationState` after the last good round.
      metrics: {name: array[rounds]} of the good rounds.

    Attributes:
      round: the number of the round that failed.
    """

    def __init__(self, message: str, state: Any, metrics: dict[str, np.ndarray]):
        self.round, self.state, self.metrics = state.round, state, metrics
        super().__init__(
            f"round {self.round}: {message} The state after the last good round "
            "is in the exception's `state`."
        )


class NonFiniteClient(RoundError, FloatingPointError):
    """A client sent NaN or infinity.

    Args:
      client: the smallest id among those concerned.
      state, metrics: as for `RoundError`.
    """

    def __init__(self, client: int, state: Any, metrics: dict[str, np.ndarray]):
        self.client = client
        super().__init__(
            f"client {client} produced NaN or infinity (loss or upload). Look at "
            "that client's data (a label outside of the classes gives NaN), lower "
            "the learning rate or clip.",
            state,
            metrics,
        )


class SumOverflow(RoundError, FloatingPointError):
    """Every upload is finite, their sum is not."""


class CohortOverflow(RoundError):
    """The sampler drew more clients than its capacity.

    Leaving some out would break a privacy accountant.
    """


class UnknownClient(RoundError):
    """The sampler drew an id that no client of the population has."""


def error_of(
    fault: int,
    state: Any,
    metrics: dict[str, np.ndarray],
    *,
    capacity: int,
    n_clients: int,
) -> RoundError:
    """What to raise for a round with this fault.

    Args:
      fault: a client's id or a `Fault`, not NONE.
      state: after the last good round.
      metrics: of the good rounds.
      capacity: of the sampler.
      n_clients: of the population.
    """
    if fault == Fault.COHORT_OVERFLOW:
        message = (
            f"the sampler drew more clients than its capacity of {capacity}; raise "
            "it and start again."
        )
        return CohortOverflow(message, state, metrics)
    if fault == Fault.UNKNOWN_CLIENT:
        message = (
            f"the sampler drew an id outside of 0 to {n_clients - 1}; make it for "
            "this population."
        )
        return UnknownClient(message, state, metrics)
    if fault == Fault.SUM:
        message = (
            "every upload is finite, but their weighted sum is beyond f32; lower "
            "the learning rate or clip."
        )
        return SumOverflow(message, state, metrics)
    return NonFiniteClient(fault, state, metrics)
