"""RoLoRA: Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA.

Chen, Guo, Ju, Dalal, Zhu, Khisti, 2024, arXiv 2409.02346 and 2502.01755. One factor at
a time is trained, sent and averaged, the other is common to all, so every round is
exact: B in the first round and every second one after it (with B = 0, A has no
gradient), A in between.

    odd rounds, from 1:  B <- sum_k p_k B_k,  A fixed;      even rounds:  A <- sum_k p_k
      A_k,  B fixed
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Part,
    Ranks,
    check_fit,
    checked_ranks,
    cut,
    cut_pairs,
    filled,
    join,
    largest_rank,
    only,
    rank_of,
    split,
)
from fedjax_fm.algorithms.lora_rules.work import (
    Mine,
    never,
    padded_mean,
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


class RoLoRAState(NamedTuple):
    """Server state."""

    delta: Tree
    round: jax.Array  # i32[]


def rolora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Alternates B and A; arguments as `fedit`.

    The client state is the last round in which a client took part.

    Sends, a layer: up the factor that is trained, r_k d_out or r_k d_in; down the one
    that the round before changed, half of `fedit` either way. A client that missed a
    round fetches both. The other trained leaves travel always.

    Ranks that differ are not the paper's; what a client does not have counts as zero,
    as in `fedit`.
    """
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()
    ranks = checked_ranks(ranks)

    def init(delta, key, setting):
        check_fit(ranks, largest_rank(split(delta)), setting)
        return RoLoRAState(delta, jnp.int32(0))

    def half(part: Part, other: Part, parity: int) -> Exchange:
        def address(message, last, client):
            factors, round_index = message
            rank = rank_of(ranks, client)
            height = jnp.int32(largest_rank(factors)) if rank is None else rank
            known = jnp.where(
                last == round_index - 1, 0, height
            )  # nobody but this client's kind changed it since
            news = (
                cut(only(factors, other).pairs, height),
                cut(only(factors, part).pairs, known),
                factors.rest,
            )
            return Mine(
                Unbilled(cut_pairs(only(factors, part), rank)),
                Unbilled(only(factors, other).pairs),
                news,
            )

        def client(backbone, message):
            def one(mine, last, data, key):
                work = train_factors(task, client_optimizer, mine, backbone, data, key)
                return ClientOutput(
                    upload=work.change,
                    weight=work.weight,
                    state=data.round,
                    metrics=work.metrics,
                )

            return one

        def server(state, aggregate, key):
            mean, weight = aggregate.value
            delta = settled(
                weight > 0, join(filled(mean, split(state.delta).pairs)), state.delta
            )
            return RoLoRAState(
                delta, state.round + parity
            ), {}  # the round ends with its second exchange

        return Exchange(
            broadcast=lambda state: (split(state.delta), Unbilled(state.round)),
            client=client,
            server=server,
            reduce=padded_mean(lambda delta: only(split(delta), part)),
            batches=batches,
            address=address,
            selects=lambda message, client, key: message[1] % 2 == parity,
        )

    return Algorithm(
        init=init, exchanges=(half("b", "a", 0), half("a", "b", 1)), client_init=never
    )
