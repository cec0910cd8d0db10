"""FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations (stacking).

Wang, Shen, He, Sun, Wang, Lyu, Li, 2024, arXiv 2409.05976. Factors are stacked, not
averaged, and clients start anew beside a frozen layer that has taken the stack in.

    client:  (A_k, B_k) <- local steps from a fresh start of rank r_k, beside W
    server:  A = [p_1 A_1; ...; p_m A_m],  B = [B_1, ..., B_m],  so that B A = sum_k p_k
      B_k A_k;   W <- W + s B A
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules import residual as residuals
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    Ranks,
    check_fit,
    checked_ranks,
    cut_pairs,
    join,
    largest_rank,
    rank_of,
    split,
)
from fedjax_fm.algorithms.lora_rules.residual import Residual
from fedjax_fm.algorithms.lora_rules.work import (
    Mine,
    kept,
    mean_over,
    never,
    settled,
    stacked_rows,
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


class FLoRAState(NamedTuple):
    """Server state; the delta's factors are the next fresh start, the residual, which
    `simulator.model` adds to the kernels, is what was learnt.
    """

    delta: Tree
    residual: Residual


def flora(
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
    """Stacks the factors and merges the stack into the frozen kernels; arguments as `fedex_lora`.

    The effective weights after a round are the mean of the clients', whatever their
    ranks. Every round starts from A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)) of a seed that
    clients know, and B = 0; the first from the delta given.

    Sends up r_k (d_in + d_out) numbers a layer, down sum_k r_k (d_in + d_out) of the
    last round's clients, which grows with the cohort; the other trained leaves are
    averaged and travel both ways. See `residual.py`.
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
            layer: residuals.stack_height(ranks, p.a.shape[0], n)
            for layer, p in factors.pairs.items()
        }
        return FLoRAState(delta, residuals.start(factors, heights))

    def address(message, last, client):
        factors, residual = message
        trained = cut_pairs(factors, rank_of(ranks, client))
        return Mine(
            Unbilled(trained), (), (factors.rest, residuals.bought(residual, last))
        )

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
        found, newest = aggregate.value, {}
        for layer, pair in found.factors.pairs.items():
            rows = stacked_rows(scaling * found.shares, pair)
            real = jnp.arange(pair.a.shape[1]) < found.heights[layer][:, None]
            newest[layer] = residuals.packed(
                rows, real.reshape(-1), len(state.residual.newest[layer].a.values)
            )
        factors = fresh(split(state.delta), key)
        rest = settled(
            found.came, mean_over(found.shares, found.factors.rest), factors.rest
        )
        delta = join(dataclasses.replace(factors, rest=rest))
        return FLoRAState(delta, residuals.grown(state.residual, newest)), {}

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


def fresh(factors: Factors, key: jax.Array) -> Factors:
    """A as PEFT draws it, B = 0."""

    def one(number: int, pair: Pair) -> Pair:
        bound = pair.a.shape[-1] ** -0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, number), pair.a.shape, pair.a.dtype, -bound, bound
        )
        return Pair(a, jnp.zeros_like(pair.b))

    pairs = {
        layer: one(i, pair) for i, (layer, pair) in enumerate(factors.pairs.items())
    }
    return dataclasses.replace(factors, pairs=pairs)
