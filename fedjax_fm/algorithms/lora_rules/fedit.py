"""FedIT: Towards Building the Federated GPT: Federated Instruction Tuning (Shepherd).

Zhang, Vahidian, Kuo, Li, Zhang, Yu, Wang, Chen, 2023, arXiv 2305.05644. FedAvg on the
factors; ranks that differ are padded with zeros, the baseline of HetLoRA and FLoRA.

    client:  (A_k, B_k) <- local steps from the first r_k rows of (A, B)
    server:  A <- sum_k p_k A_k,  B <- sum_k p_k B_k;   the product differs from sum_k
             p_k B_k A_k by the covariance sum_k p_k (B_k - B)(A_k - A)
"""

from typing import NamedTuple

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Ranks,
    check_fit,
    checked_ranks,
    join,
    largest_rank,
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
from fedjax_fm.types import Algorithm, Batches, Exchange, Task, Tree


class FedITState(NamedTuple):
    """Server state."""

    delta: Tree


def fedit(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages A and B apart from each other, by examples (or the task's weights).

    Args:
      ranks: i32[clients], at most the delta's; None gives all clients the delta's.
        Ranks that differ are not the paper's.

    Sends r_k (d_in + d_out) numbers a layer each way, and the other trained leaves.
    With equal ranks it is `fedavg`.
    """
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()
    ranks = checked_ranks(ranks)

    def init(delta, key, setting):
        check_fit(ranks, largest_rank(split(delta)), setting)
        return FedITState(delta)

    def server(state, aggregate, key):
        mean, weight = aggregate.value
        return FedITState(settled(weight > 0, join(mean), state.delta)), {}

    exchange = Exchange(
        broadcast=lambda state: Mine(split(state.delta)),
        client=sends_change(task, client_optimizer),
        server=server,
        reduce=padded_mean(),
        batches=batches,
        address=by_rank(ranks),
    )
    return Algorithm(init=init, exchanges=(exchange,))
