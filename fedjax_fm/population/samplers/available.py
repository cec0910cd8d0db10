"""Uniform among the clients that are there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.population.permutation import permuted
from fedjax_fm.population.samplers.checks import check_cohort_size, check_n_clients
from fedjax_fm.types import Sampler

# (round i32[], key) -> bool[N]
Trace = Callable[[jax.Array, jax.Array], jax.Array]
# (round i32[], key) -> (ids i32[cohort_size], number available i32[])
Pick = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def available(n_clients: int, cohort_size: int, trace: np.ndarray | Trace) -> Sampler:
    """Draws `cohort_size` of the clients available in the round, every set as likely.

    With fewer clients available the cohort is that much smaller, down to n_active = 0.
    The state is the number of cohorts drawn so far, i32[].

    Args:
      n_clients: clients in the population.
      cohort_size: the most clients a round, 1 to n_clients; also the capacity.
      trace: who is there. An array bool[T, n_clients]: round t uses row t mod T. It is
        kept as lists of ids, 4 bytes for each True, and a draw costs O(cohort_size);
        `population.traces` makes such arrays. Or a function (round i32[], key) ->
        bool[n_clients], pure and traceable by jax; a draw costs O(population). Its key
        is another one each round: a client's lasting property must come from elsewhere,
        for example from `jax.random.key(0)`.

    Returns:
      A sampler without a law.

    Raises:
      ValueError: sizes out of range, a trace of another shape or type.

    References:
      Wang, S. and Ji, M. (2022). A Unified Analysis of Federated Learning with
      Arbitrary Client Participation. NeurIPS. arXiv:2205.13648.

    Example:
      >>> import jax, numpy as np
      >>> from fedjax_fm.population import samplers
      >>> trace = np.array([[True, False, True], [False, False, True]])
      >>> sampler = samplers.available(3, 2, trace)
      >>> ids, n_active, state = sampler.draw(sampler.init(), jax.random.key(0))
      >>> sorted(ids.tolist()), int(n_active), int(state)
      ([0, 2], 2, 1)
      >>> ids, n_active, state = sampler.draw(state, jax.random.key(1))
      >>> ids[:n_active].tolist()
      [2]
    """
    n_clients = check_n_clients(n_clients)
    cohort_size = check_cohort_size(cohort_size, n_clients)
    slots = jnp.arange(cohort_size, dtype=jnp.int32)

    def places(key, n):
        """i32[cohort_size] below max(n, 1); the first min(n, cohort_size) differ."""
        positions = jnp.clip(slots, 0, jnp.maximum(n - 1, 0))
        return permuted(key, n, positions, n_clients)

    make: Any = _from_function if callable(trace) else _from_array
    pick = make(n_clients, trace, places)

    def draw(state, key):
        ids, n = pick(state, key)
        return ids, jnp.minimum(n, cohort_size), state + 1

    return Sampler(init=lambda: jnp.int32(0), draw=draw, capacity=cohort_size)


def _from_array(n_clients: int, trace: np.ndarray, places: Callable) -> Pick:
    """Draws from the lists of ids of an array's rounds."""
    trace = np.asarray(trace)
    has_rounds = trace.ndim == 2 and len(trace) > 0
    if not has_rounds or trace.dtype != np.bool_ or trace.shape[1] != n_clients:
        raise ValueError(
            f"expected a trace bool[rounds >= 1, {n_clients}], who is available "
            f"in which round, got type {trace.dtype} and shape {trace.shape}; "
            "convert it, for example by `trace > 0`, or transpose it"
        )
    counts = trace.sum(axis=1, dtype=np.int64)
    if counts.sum() > np.iinfo(np.int32).max:
        raise ValueError(
            f"expected a trace with at most {np.iinfo(np.int32).max} True, got "
            f"{counts.sum()}; pass a function (round, key) -> bool[n_clients] "
            "instead"
        )
    # All rounds' lists of ids in one row; the last entry is read by a round without
    # anyone only.
    _, ids = np.nonzero(trace)
    members = np.append(ids, 0).astype(np.int32)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    sizes = counts.astype(np.int32)

    def pick(round_index, key):
        row = round_index % len(sizes)
        n = jnp.asarray(sizes)[row]
        _, key = jax.random.split(key)
        index = jnp.asarray(starts)[row] + places(key, n)
        return jnp.asarray(members)[index], n

    return pick


def _from_function(n_clients: int, trace: Trace, places: Callable) -> Pick:
    """Draws from what a function says of the round."""
    key = jax.random.key(0)
    got = jax.eval_shape(trace, jnp.int32(0), key)
    is_array = isinstance(got, jax.ShapeDtypeStruct)
    if not is_array or got.shape != (n_clients,) or got.dtype != jnp.bool_:
        raise ValueError(
            f"expected trace(round, key) to return bool[{n_clients}], who is "
            f"available, got {got}; compare with a probability to get bool"
        )

    def pick(round_index, key):
        trace_key, key = jax.random.split(key)
        # ranks[k]: of client k among the available, from 1.
        ranks = jnp.cumsum(trace(round_index, trace_key), dtype=jnp.int32)
        n = ranks[-1]
        wanted = places(key, n) + 1
        ids = jnp.searchsorted(ranks, wanted).astype(jnp.int32)
        # With no client there the search ends past the last client.
        return jnp.minimum(ids, n_clients - 1), n

    return pick
