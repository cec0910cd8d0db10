"""How many rows each client of a stand-in has."""

from __future__ import annotations

import numpy as np

from fedjax_fm.datasets.named.benchmark import Benchmark, Request

MOST_ROWS = 1_000_000  # of a stand-in in memory


def client_sizes(
    n_clients: int,
    n_rows: int,
    spread: float,
    rng: np.random.Generator,
    most: int | None = None,
) -> np.ndarray:
    """Log-normal sizes with a given sum, each at least 1.

    Beyond its first row a client has a part of the others in proportion to exp(spread z)
    with z standard normal. What a bound cuts off goes to the other clients.

    Args:
      n_clients: how many.
      n_rows: what they sum to.
      spread: standard deviation of the logarithm.
      rng: draws them.
      most: bound of one size; None for none.

    Returns:
      int64[n_clients].

    Raises:
      ValueError: rows for fewer than one each, or more than the bound allows.

    Example:
      >>> sizes = client_sizes(4, 100, 1.0, np.random.default_rng(0), most=40)
      >>> int(sizes.sum()), bool(sizes.max() <= 40)
      (100, True)
    """
    bound = n_rows if most is None else most
    if not n_clients <= n_rows <= n_clients * bound:
        raise ValueError(
            f"expected {n_clients} to {n_clients * bound} rows for {n_clients} "
            f"clients, got {n_rows}"
        )
    weight = np.exp(spread * rng.standard_normal(n_clients))
    sizes = np.ones(n_clients, np.int64)
    left = n_rows - n_clients
    while left:
        is_open = sizes < bound
        weight = np.where(is_open, weight, 0.0)
        if left < is_open.sum():  # not a row each: the largest parts get one
            given = np.zeros(n_clients, np.int64)
            given[np.argsort(-weight, kind="stable")[:left]] = 1
        else:
            wanted = left * weight / weight.sum()
            given = np.minimum(np.floor(wanted).astype(np.int64), bound - sizes)
        sizes += given
        left -= int(given.sum())
    return sizes


def request(
    benchmark: Benchmark, seed: int, limit: int | None, *, test: bool
) -> Request:
    """What a generator is asked for: the client of each row, within the limit.

    Natural clients keep their number and the law of their sizes where the limit makes
    two rows a client; else the first clients come with all of their rows.

    Args:
      benchmark: its rows, clients and spread.
      seed: of everything.
      limit: rows at most.
      test: whether it is for the hub's test split.

    Raises:
      ValueError: more rows than fit into memory; says to give a limit.
    """
    rng = np.random.default_rng([seed, 2 + test])
    n_rows = benchmark.test_rows if test else benchmark.rows
    wanted = n_rows if limit is None else min(limit, n_rows)
    if wanted > MOST_ROWS:
        raise ValueError(
            f"the stand-in of {benchmark.name} would have {n_rows:,} rows, and at most "
            f"{MOST_ROWS:,} are made; give limit="
        )
    n_clients = benchmark.n_clients
    if test and benchmark.test_clients:
        n_clients = benchmark.test_clients
    if n_clients == 0:
        clients = np.full(wanted, -1)
    else:
        total = wanted if wanted >= 2 * n_clients else n_rows
        sizes = client_sizes(n_clients, total, benchmark.spread, rng, benchmark.most)
        needed = int(np.searchsorted(np.cumsum(sizes), wanted)) + 1
        clients = np.repeat(np.arange(needed), sizes[:needed])[:wanted]
    return Request(clients=clients, n_clients=n_clients, rng=rng, test=test)
