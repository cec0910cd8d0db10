"""Fed-SB: A Silver Bullet for Extreme Communication Efficiency and Performance in
(Private) Federated LoRA Fine-Tuning.

Singhal, Ponkshe, Vartak, Varshney, Vepakomma, 2025, arXiv 2502.15436. W + s B R A with
B and A fixed and common; only the small square R is trained (`peft.lora_sb`, which also
makes the paper's start).

    start:   dW = -eta sign(sum of gradients) ~ U S V^T;  B = U,  R = S / s,  A = V^T
    client:  R_k <- local steps from the first r_k rows and columns of R
    server:  R <- sum_k p_k R_k,   so that B R A = sum_k p_k B R_k A exactly
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Ranks,
    check_fit,
    checked_ranks,
    cut_pairs,
    leaves_of,
    rank_of,
    rebuilt,
)
from fedjax_fm.algorithms.lora_rules.work import (
    Mine,
    padded_mean,
    settled,
    train_factors,
)
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.types import Algorithm, Batches, ClientOutput, Exchange, Task, Tree


class FedSBState(NamedTuple):
    """Server state."""

    delta: Tree


def fed_sb(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages R, the leaves named `lora_r` [..., r, r], from where they start.

    Arguments as `fedit`.

    The delta comes from `peft.lora_sb`. The authors take its gradients from the
    clients' pooled data, before training and without noise: where privacy is promised,
    take public examples. A, B and that step are not billed.

    Sends r_k^2 numbers a layer each way, and the other trained leaves. Noise added to R
    enters the update once and linearly, on r^2 numbers.

    Ranks that differ are not the paper's. As in `fedit`, what a client does not have
    counts as zero, so that entries of R that few clients train shrink every round, the
    start's too.
    """
    task = checked(task)
    checks.client_optimizer("client_optimizer", client_optimizer)
    batches = Batches(batch_size, epochs, local_steps).checked()
    ranks = checked_ranks(ranks)

    def init(delta, key, setting):
        check_fit(ranks, max(map(_side, split_squares(delta).pairs.values())), setting)
        return FedSBState(delta)

    def address(message, state, client):
        return message._replace(
            trained=cut_pairs(message.trained, rank_of(ranks, client) ** 2)
        )  # type: ignore[operator]

    def client(backbone, message):
        def one(mine, state, data, key):
            work = train_factors(
                task, client_optimizer, mine, backbone, data, key, join=join_squares
            )
            return ClientOutput(
                upload=work.change,
                weight=work.weight,
                state=state,
                metrics=work.metrics,
            )

        return one

    def server(state, aggregate, key):
        mean, weight = aggregate.value
        return FedSBState(settled(weight > 0, join_squares(mean), state.delta)), {}

    exchange = Exchange(
        broadcast=lambda state: Mine(split_squares(state.delta)),
        client=client,
        server=server,
        reduce=padded_mean(split_squares),
        batches=batches,
        address=None if ranks is None else address,
    )
    return Algorithm(init=init, exchanges=(exchange,))


def split_squares(delta: Tree) -> Factors:
    """Every `lora_r` [..., r, r] as rows [r^2, ...], ordered so that the first k^2 are
    the first k rows and columns.
    """
    leaves, form = leaves_of(delta)
    names = [name for name in leaves if name.rpartition(".")[2] == "lora_r"]
    if not names:
        raise ValueError(
            f"expected leaves lora_r in the delta (peft.lora_sb makes them), got {sorted(leaves)}"
        )
    squares = {}
    for name in names:
        square = leaves.pop(name)
        flat = square.reshape(*square.shape[:-2], -1)
        squares[name] = jnp.moveaxis(flat[..., _shells(square.shape[-1])], -1, 0)
    return Factors(squares, leaves, form)


def join_squares(factors: Factors) -> Tree:
    """The inverse of `split_squares`."""
    leaves = dict(factors.rest)
    for name, rows in factors.pairs.items():
        side = _side(rows)
        flat = jnp.moveaxis(rows, 0, -1)[..., np.argsort(_shells(side))]
        leaves[name] = flat.reshape(*flat.shape[:-1], side, side)
    return rebuilt(leaves, factors.form)


def _side(rows) -> int:
    return round(rows.shape[0] ** 0.5)


def _shells(side: int) -> np.ndarray:
    """The entries of a square, by the larger of row and column."""
    row, column = np.divmod(np.arange(side * side), side)
    return np.argsort(np.maximum(row, column), kind="stable")
