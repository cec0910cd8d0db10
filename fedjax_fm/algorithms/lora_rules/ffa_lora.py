"""FFA-LoRA: Improving LoRA in Privacy-preserving Federated Learning.

Sun, Li, Li, Ding, 2024, arXiv 2403.12313. A stays at its shared random start; B alone
is trained, sent and averaged.

    client:  B_k <- local steps from the first r_k rows of B
    server:  B <- sum_k p_k B_k,   so that B A = sum_k p_k B_k A exactly
"""

from typing import NamedTuple

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Ranks,
    check_fit,
    checked_ranks,
    filled,
    join,
    largest_rank,
    only,
    split,
)
from fedjax_fm.algorithms.lora_rules.work import (
    Mine,
    by_rank,
    padded_mean,
    sends_change,
    settled,
)
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.types import Algorithm, Batches, Exchange, Task, Tree, Unbilled


class FFALoRAState(NamedTuple):
    """Server state; A never changes."""

    delta: Tree


def ffa_lora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Trains B only; arguments as `fedit`.

    Sends r_k d_out numbers a layer each way, and the other trained leaves; clients draw
    A from the shared seed. Noise added to B enters the update once and linearly.

    Ranks that differ are not the paper's; what a client does not have counts as zero,
    as in `fedit`.
    """
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()
    ranks = checked_ranks(ranks)

    def init(delta, key, setting):
        check_fit(ranks, largest_rank(split(delta)), setting)
        return FFALoRAState(delta)

    def trained(delta):
        return only(split(delta), "b")

    def broadcast(state):
        return Mine(trained(state.delta), Unbilled(only(split(state.delta), "a").pairs))

    def server(state, aggregate, key):
        mean, weight = aggregate.value
        delta = join(filled(mean, split(state.delta).pairs))
        return FFALoRAState(settled(weight > 0, delta, state.delta)), {}

    client = sends_change(task, client_optimizer)
    exchange = Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=padded_mean(trained),
        batches=batches,
        address=by_rank(ranks),
    )
    return Algorithm(init=init, exchanges=(exchange,))
