"""Fed-SB: between fixed B and A, a small square R alone is trained, sent and averaged.

Singhal, Ponkshe, Vartak, Varshney, Vepakomma, 2025, "Fed-SB: A Silver Bullet for Extreme
Communication Efficiency and Performance in (Private) Federated LoRA Fine-Tuning",
arXiv 2502.15436. A layer is W + s B R A; `peft.lora_sb` adds the three to a model.

    start:   dW = -eta sign(sum of gradients) ~ U S V^T;  B = U,  R = S / s,  A = V^T
    client:  R_k <- local steps from the first r_k rows and columns of R
    server:  R <- sum_k p_k R_k,   so that B R A = sum_k p_k B R_k A exactly
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Layout,
    Pair,
    child,
    from_leaves,
    leaves_by_path,
    take,
)
from fedjax_fm.algorithms.lora_rules.rule import Rule, algorithm_of
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task, Tree


def fed_sb(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages R, the leaves `lora_r` [..., r, r], from where `peft.lora_sb` starts them.

    The authors take the gradients of that start from the clients' pooled data, before
    training and without noise: where privacy is promised, take public examples. A, B
    and that step are not billed. Sends r_k^2 numbers a layer each way, and the other
    trained leaves. Noise added to R enters the update once and linearly, on r^2
    numbers.

    Ranks that differ are not the paper's. As in `fedit`, entries that a client does not
    have count as zero, so that entries of R that few clients train shrink every round,
    those of the start too.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      ranks: i32[N], the rank of every client, at most that of the delta; None: all have
        the rank of the delta.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `DeltaState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no leaves `lora_r`, or the ranks do not fit.

    References:
      Singhal et al. 2025, arXiv 2502.15436.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> fixed = {"lora_a": jnp.eye(3)[:, :1], "lora_b": jnp.ones((1, 2))}
      >>> def loss(delta, backbone, batch, key):
      ...     a, b = backbone["layer"]["lora_a"], backbone["layer"]["lora_b"]
      ...     update = a @ delta["layer"]["lora_r"] @ b
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> method = fed_sb(Task(loss), optax.sgd(0.25), local_steps=1, batch_size=1)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> backbone = {"layer": fixed}
      >>> simulator = ffm.Simulator(method, population, backbone=backbone, cohort_size=2)
      >>> delta = {"layer": {"lora_r": jnp.zeros((1, 1))}}
      >>> state, metrics = simulator.run(simulator.init(delta), 1)
      >>> state.delta["layer"]["lora_r"].tolist()  # the clients had 1 and 0
      [[0.5]]
      >>> metrics["uplink_bytes"].tolist()  # of two clients, one number of 4 bytes each
      [8]
    """
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks, layout=SQUARES)
    return algorithm_of(Rule(sent="a"), training)  # R, see `split_squares`


def split_squares(delta: Tree) -> Factors:
    """Finds the squares by name, `lora_r` [..., r, r].

    Each becomes rows [r^2, ...], of which the first k^2 are the first k rows and
    columns; it takes the place of a pair's first factor, there is no second.

    Args:
      delta: the trainable tree.

    Returns:
      Its factors, and all other leaves.

    Raises:
      ValueError: there are no squares.
    """
    leaves, form = leaves_by_path(delta)
    rest = dict(leaves)
    squares = take(rest, "lora_r")
    if not squares:
        raise ValueError(
            "expected leaves lora_r in the delta (peft.lora_sb makes them), "
            f"got {sorted(leaves)}"
        )
    rows = jax.tree.map(_rows, squares)
    return Factors({layer: Pair(rows[layer]) for layer in rows}, rest, form)


def join_squares(factors: Factors) -> Tree:
    """The inverse of `split_squares`.

    Args:
      factors: arrays, none left out.

    Returns:
      The delta.
    """
    leaves = dict(factors.rest)
    for layer, pair in factors.pairs.items():
        leaves[child(layer, "lora_r")] = _square(pair.a)
    return from_leaves(leaves, factors.form)


def _rows(square: jax.Array) -> jax.Array:
    """[..., r, r] -> [r^2, ...]."""
    side = square.shape[-1]
    flat = square.reshape(*square.shape[:-2], side * side)
    return jnp.moveaxis(flat[..., _order(side)], -1, 0)


def _square(rows: jax.Array) -> jax.Array:
    """[r^2, ...] -> [..., r, r]."""
    side = round(rows.shape[0] ** 0.5)
    inverse = np.argsort(_order(side))
    flat = jnp.moveaxis(rows, 0, -1)[..., inverse]
    return flat.reshape(*flat.shape[:-1], side, side)


def _order(side: int) -> np.ndarray:
    """i64[side^2]: the entries of a square, by the larger of row and column."""
    row, column = np.divmod(np.arange(side * side), side)
    return np.argsort(np.maximum(row, column), kind="stable")


SQUARES = Layout(split_squares, join_squares, power=2)
