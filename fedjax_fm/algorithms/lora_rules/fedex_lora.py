"""FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models.

Singhal, Ponkshe, Vepakomma, 2024, arXiv 2410.09432. Factors are averaged, and what the
average misses is added to the frozen layer.

    client:  (A_k, B_k) <- local steps from (A, B), beside W
    server:  A <- sum_k p_k A_k,  B <- sum_k p_k B_k,
             W <- W + s (sum_k p_k B_k A_k - B A) = W + s sum_k p_k (B_k - B)(A_k - A)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules import residual as residuals
from fedjax_fm.algorithms.lora_rules.factors import (
    Pair,
    Ranks,
    check_fit,
    checked_ranks,
    cut_pairs,
    join,
    largest_rank,
    product,
    rank_of,
    split,
)
from fedjax_fm.algorithms.lora_rules.residual import Residual
from fedjax_fm.algorithms.lora_rules.work import (
    Kept,
    Mine,
    kept,
    mean_over,
    never,
    settled,
    train_factors,
)
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientOutput,
    Exchange,
    Task,
    Tree,
    Unbilled,
)


class FedExLoRAState(NamedTuple):
    """Server state; the residual goes with the delta, `simulator.model` adds it to the kernels."""

    delta: Tree
    residual: Residual


def fedex_lora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    scaling: float,
    ranks: Ranks = None,
    most_clients: int | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages the factors and puts the residual into the frozen kernels.

    Other arguments as `fedit`.

    Args:
      scaling: s = alpha / r of the LoRA layers: the algorithm sees trees, which do not hold it.
      most_clients: of a round; None means the cohort size. A larger cohort stops the run.

    The effective weights after a round are the mean of the clients', weighted by
    examples (the authors' code: uniform). With ranks that differ, which are not the
    paper's, this holds for the delta's full rank; a client of smaller rank starts from
    its first rows.

    Sends r_k (d_in + d_out) numbers a layer each way, and down the residual of rank at
    most R = sum_k r_k (plus a row for each that some client lacks): min(R (d_in +
    d_out), d_in d_out), the shape decides which. See `residual.py`.
    """
    checks.real("scaling", scaling, above=0)
    if most_clients is not None:
        checks.whole("most_clients", most_clients, least=1)
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()
    ranks = checked_ranks(ranks)

    def init(delta, key, setting):
        factors = split(delta)
        check_fit(ranks, largest_rank(factors), setting)
        n = residuals.room(most_clients, setting)
        heights = {
            layer: _height(pair, ranks, n) for layer, pair in factors.pairs.items()
        }
        return FedExLoRAState(delta, residuals.start(factors, heights))

    def address(message, last, client):
        factors, residual = message
        trained = cut_pairs(factors, rank_of(ranks, client))
        return Mine(trained, (), residuals.bought(residual, last))

    def client(backbone, message):
        whole = residuals.merged(backbone, message[1])

        def one(mine, last, data, key):
            work = train_factors(task, client_optimizer, mine, whole, data, key)
            return ClientOutput(
                upload=work.change,
                weight=work.weight,
                state=data.round,
                metrics=work.metrics,
            )

        return one

    def server(state, aggregate, key):
        found = aggregate.value
        mean = mean_over(found.shares, found.factors)
        newest = {}
        for layer, old in state.residual.newest.items():
            rows, real = centred_rows(found, mean.pairs[layer], layer, scaling)
            newest[layer] = (
                residuals.packed(rows, real, len(old.a.values))
                if isinstance(old, Pair)
                else product(rows)
            )
        delta = settled(found.came, join(mean), state.delta)
        return FedExLoRAState(delta, residuals.grown(state.residual, newest)), {}

    exchange = Exchange(
        broadcast=lambda state: (split(state.delta), Unbilled(state.residual)),
        client=client,
        server=server,
        reduce=kept(lambda found: found),
        batches=batches,
        address=address,
    )
    return Algorithm(
        init=init,
        exchanges=(exchange,),
        client_init=never,
        model=residuals.model_with_residual,
    )


def _height(pair: Pair, ranks: np.ndarray | None, n_clients: int) -> int | None:
    """Rows of the residual; None where the dense matrix is smaller."""
    rank = pair.a.shape[0]
    lacking = 0 if ranks is None else rank - min(rank, int(ranks.min()))
    height = residuals.stack_height(ranks, rank, n_clients) + lacking
    return height if residuals.pays(pair, height) else None


def centred_rows(
    found: Kept, mean: Pair, layer: str, scaling: float
) -> tuple[Pair, jax.Array]:
    """(rows, bool[rows]): s p_k (a_k - a) beside b_k - b for the rows that client k
    has, and one more, s q a beside b, for a row that clients of shares q in all have
    not. The product of all is the residual.
    """
    pair, shares = found.factors.pairs[layer], found.shares
    rank = mean.a.shape[0]
    has = jnp.arange(rank) < found.heights[layer][:, None]  # [C, r]
    lacking = jnp.sum(jnp.where(has, 0.0, shares[:, None]), axis=0)  # [r]

    def spread(x, like):
        return x.reshape(*x.shape, *[1] * (like.ndim - x.ndim))

    def centre(x, mean):
        return jnp.where(spread(has, x), x - mean, 0)

    weighted = scaling * spread(shares, pair.a) * centre(pair.a, mean.a)

    def flat(x):
        return x.reshape(-1, *x.shape[2:])

    a = jnp.concatenate([flat(weighted), scaling * spread(lacking, mean.a) * mean.a])
    b = jnp.concatenate([flat(centre(pair.b, mean.b)), mean.b])
    return Pair(a, b), jnp.concatenate([flat(has), lacking > 0])
