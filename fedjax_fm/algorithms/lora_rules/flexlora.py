"""FlexLoRA: Federated Fine-tuning of Large Language Models under Heterogeneous Tasks
and Client Resources.

Bai, Chen, Qian, Yao, Li, 2024, arXiv 2402.11505. The update is averaged whole and cut
into ranks by its SVD.

    client:  (A_k, B_k) <- local steps from rank r_k of (A, B)
    server:  sum_k p_k B_k A_k = U S V^T;   B <- U S,  A <- V^T, of which client k gets
      the first r_k singular values
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    Ranks,
    check_fit,
    checked_ranks,
    join,
    largest_rank,
    split,
)
from fedjax_fm.algorithms.lora_rules.work import (
    Kept,
    Mine,
    by_rank,
    kept,
    mean_over,
    sends_change,
    settled,
    stacked_rows,
)
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.types import Algorithm, Batches, Exchange, Task, Tree


class FlexLoRAState(NamedTuple):
    """Server state: the update's largest singular values, as many as the delta has rank."""

    delta: Tree


def flexlora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages products and redistributes them by truncated SVD; arguments as `fedit`.

    A rank that reaches the update's loses nothing; else the Frobenius error is that of
    the singular values cut off, which the metric `truncation_error` reports over all
    layers, at the delta's rank. The server keeps a cohort's factors. Sends r_k (d_in +
    d_out) numbers a layer each way, and the other trained leaves.
    """
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()
    ranks = checked_ranks(ranks)

    def init(delta, key, setting):
        check_fit(ranks, largest_rank(split(delta)), setting)
        return FlexLoRAState(delta)

    def finish(found: Kept):
        pairs, tails = {}, []
        for layer, pair in found.factors.pairs.items():
            rank = pair.a.shape[1]
            pairs[layer], tail = truncated_svd(stacked_rows(found.shares, pair), rank)
            tails.append(jnp.sum(tail**2))
        rest = mean_over(found.shares, found.factors.rest)
        return (
            Factors(pairs, rest, found.factors.form),
            jnp.sqrt(jnp.sum(jnp.stack(tails))),
            found.came,
        )

    def server(state, aggregate, key):
        factors, error, came = aggregate.value
        return FlexLoRAState(settled(came, join(factors), state.delta)), {
            "truncation_error": error
        }

    exchange = Exchange(
        broadcast=lambda state: Mine(split(state.delta)),
        client=sends_change(task, client_optimizer),
        server=server,
        reduce=kept(finish),
        batches=batches,
        address=by_rank(ranks),
    )
    return Algorithm(init=init, exchanges=(exchange,))


def truncated_svd(pair: Pair, rank: int) -> tuple[Pair, jax.Array]:
    """(the best pair of that rank, singular values [..., cut off]) of the product of a
    pair with more rows.

    The new a has orthonormal rows, b carries the singular values. With fewer rows than
    either side, by QR of both factors: O((in + out) rows^2) and no [in, out] is formed.
    Signs are fixed: in every a_i the largest entry is positive.
    """
    height, n_in, n_out = pair.a.shape[0], pair.a.shape[-1], pair.b.shape[-1]
    a, b = (jnp.moveaxis(x, 0, -1) for x in pair)  # [..., in, rows], [..., out, rows]
    if height < min(n_in, n_out):
        (q_a, r_a), (q_b, r_b) = jnp.linalg.qr(a), jnp.linalg.qr(b)
        u, s, vt = jnp.linalg.svd(r_a @ jnp.swapaxes(r_b, -1, -2), full_matrices=False)
        left, right = q_a @ u[..., :rank], vt[..., :rank, :] @ jnp.swapaxes(q_b, -1, -2)
    else:
        u, s, vt = jnp.linalg.svd(a @ jnp.swapaxes(b, -1, -2), full_matrices=False)
        left, right = u[..., :rank], vt[..., :rank, :]
    largest = jnp.take_along_axis(
        left, jnp.argmax(jnp.abs(left), axis=-2, keepdims=True), axis=-2
    )
    sign = jnp.where(largest < 0, -1.0, 1.0)  # [..., 1, rank]
    carried = jnp.swapaxes(sign * s[..., None, :rank], -1, -2) * right
    return Pair(jnp.moveaxis(sign * left, -1, 0), jnp.moveaxis(carried, -2, 0)), s[
        ..., rank:
    ]
