"""FedSA-LoRA: Selective Aggregation for Low-Rank Adaptation in Federated Learning.

Guo, Zeng, Wang, Fan, Wang, Qu, 2024, arXiv 2410.01463. A is shared and averaged, every
client keeps its own B.

    client:  (A_k, B_k) <- local steps from (A, its own B_k);  sends A_k
    server:  A <- sum_k p_k A_k
"""

from typing import NamedTuple

import jax

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    Ranks,
    check_fit,
    checked_ranks,
    cut,
    filled,
    join,
    largest_rank,
    only,
    rank_of,
    split,
)
from fedjax_fm.algorithms.lora_rules.work import (
    Mine,
    by_rank,
    padded_mean,
    settled,
    train_factors,
)
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.types import Algorithm, Batches, ClientOutput, Exchange, Task, Tree


class FedSALoRAState(NamedTuple):
    """Server state; its B stays at the start, no client has it."""

    delta: Tree


def fedsa_lora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Shares A; arguments as `fedit`.

    A client's own model is `fedsa_delta(state.delta, its client state)`.

    Sends r_k d_in numbers a layer each way, and the other trained leaves; nothing of B.

    Ranks that differ are not the paper's, which gives all clients one rank. Here rows
    of A beyond a client's rank count as zero in the mean, as in `fedit`, so that rows
    that few clients train shrink every round; a client's own B has its rank.
    """
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()
    ranks = checked_ranks(ranks)

    def init(delta, key, setting):
        check_fit(ranks, largest_rank(split(delta)), setting)
        return FedSALoRAState(delta)

    def shared(delta):
        return only(split(delta), "a")

    def client(backbone, message):
        def one(mine, own, data, key):
            rank = rank_of(ranks, data.id)
            whole = filled(
                mine.trained,
                {layer: Pair((), cut(b, rank)) for layer, b in own.items()},
            )
            work = train_factors(
                task, client_optimizer, Mine(whole), backbone, data, key
            )
            return ClientOutput(
                upload=only(work.change, "a"),
                weight=work.weight,
                state=_own(work.end),
                metrics=work.metrics,
            )

        return one

    def server(state, aggregate, key):
        mean, weight = aggregate.value
        delta = join(filled(mean, split(state.delta).pairs))
        return FedSALoRAState(settled(weight > 0, delta, state.delta)), {}

    exchange = Exchange(
        broadcast=lambda state: Mine(shared(state.delta)),
        client=client,
        server=server,
        reduce=padded_mean(shared),
        batches=batches,
        address=by_rank(ranks),
    )

    def client_init(delta, key):
        return _own(split(delta))

    def model(server, own, backbone):
        return (
            server.delta if own is None else fedsa_delta(server.delta, own)
        ), backbone

    return Algorithm(
        init=init, exchanges=(exchange,), client_init=client_init, model=model
    )


def _own(factors: Factors) -> dict[str, jax.Array]:
    """What a client keeps: B [r, ..., out] of every layer, zero beyond its rank."""
    return {layer: pair.b for layer, pair in factors.pairs.items()}


def fedsa_delta(delta: Tree, own: dict[str, jax.Array]) -> Tree:
    """The delta of one client: the server's A and its own B."""
    factors = split(delta)
    return join(
        filled(only(factors, "a"), {layer: Pair((), b) for layer, b in own.items()})
    )
