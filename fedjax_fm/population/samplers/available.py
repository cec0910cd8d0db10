"""Uniform among the clients that are there."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.population.permutation import permuted
from fedjax_fm.population.samplers.checks import check_cohort_size, check_n_clients
from fedjax_fm.types import Sampler

Trace = Callable[[jax.Array, jax.Array], jax.Array]  # (round i32[], key) -> bool[N]
Pick = Callable[
    [jax.Array, jax.Array], tuple[jax.Array, jax.Array]
]  # (round, key) -> (ids, number available)


def available(n_clients: int, cohort_size: int, trace: np.ndarray | Trace) -> Sampler:
    """`cohort_size` of the clients available in the round, every set of them equally likely.

    All, if there are fewer.

    With fewer than `cohort_size` clients available the cohort is that much smaller,
    down to n_active = 0. The state is the number of cohorts drawn so far, i32[].

    Args:
      n_clients: clients in the population.
      cohort_size: the most clients a round, 1 to n_clients; also the capacity.
      trace: who is there. bool[T, n_clients]: round t uses row t mod T. Kept as lists
        of ids, 4 bytes for each True; a draw costs O(cohort_size). `population.traces`
        makes such arrays. A function (round i32[], key) -> bool[n_clients], pure and
        traceable by jax; a draw costs O(population). The key is another one each round:
        a client's lasting property must come from elsewhere, for example from
        `jax.random.key(0)`.

    Raises:
      ValueError: sizes out of range, a trace of another shape or type.

    References:
      Wang, S. and Ji, M. (2022). A Unified Analysis of Federated Learning with
      Arbitrary Client Participation. NeurIPS. arXiv:2205.13648.

    Example:
      >>> sampler = available(3, 2, np.array([[True, False, True], [False, False, True]]))
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

    def places(
        key, n
    ):  # i32[cohort_size] in [0, max(n, 1)), the first min(n, cohort_size) of them distinct
        return permuted(key, n, jnp.clip(slots, 0, jnp.maximum(n - 1, 0)), n_clients)

    pick = (
        _from_function(n_clients, trace, places)
        if callable(trace)
        else _from_array(n_clients, trace, places)
    )

    def draw(state, key):
        ids, n = pick(state, key)
        return ids, jnp.minimum(n, cohort_size), state + 1

    return Sampler(init=lambda: jnp.int32(0), draw=draw, capacity=cohort_size)


def _from_array(n_clients: int, trace: np.ndarray, places: Callable) -> Pick:
    trace = np.asarray(trace)
    if (
        trace.dtype != np.bool_
        or trace.ndim != 2
        or trace.shape[1] != n_clients
        or len(trace) == 0
    ):
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
    # All rounds' lists of ids in one row; the last entry is only read by a round without anyone.
    members = np.append(np.nonzero(trace)[1], 0).astype(np.int32)
    starts, sizes = (
        (np.cumsum(counts) - counts).astype(np.int32),
        counts.astype(np.int32),
    )

    def pick(round_index, key):
        row = round_index % len(sizes)
        n = jnp.asarray(sizes)[row]
        _, key = jax.random.split(key)
        return jnp.asarray(members)[jnp.asarray(starts)[row] + places(key, n)], n

    return pick


def _from_function(n_clients: int, trace: Trace, places: Callable) -> Pick:
    got = jax.eval_shape(trace, jnp.int32(0), jax.random.key(0))
    if (
        not isinstance(got, jax.ShapeDtypeStruct)
        or got.shape != (n_clients,)
        or got.dtype != jnp.bool_
    ):
        raise ValueError(
            f"expected trace(round, key) to return bool[{n_clients}], who is "
            f"available, got {got}; compare with a probability to get bool"
        )

    def pick(round_index, key):
        trace_key, key = jax.random.split(key)
        ranks = jnp.cumsum(
            trace(round_index, trace_key), dtype=jnp.int32
        )  # of client k among the available: ranks[k]
        n = ranks[-1]
        ids = jnp.searchsorted(ranks, places(key, n) + 1).astype(jnp.int32)
        return jnp.minimum(
            ids, n_clients - 1
        ), n  # with nobody there the search ends past the last client

    return pick
