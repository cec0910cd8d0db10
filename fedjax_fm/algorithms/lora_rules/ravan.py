"""RAVAN: between fixed factors, small squares are trained, sent and averaged.

Raje, Askin, Jhunjhunwala, Joshi, 2025, "Ravan: Multi-Head Low-Rank Adaptation for
Federated Fine-Tuning", arXiv 2506.05568. A layer is W + s sum_i s_i B_i H_i A_i;
`peft.ravan` adds the parts to a model.

    client:  (H_ik, s_ik) <- local steps from (H_i, 1), on some of the heads i
    server:  H_i <- mean of s_ik H_ik over the clients that trained head i,  s_i <- 1

With all heads trained, B_i H_i A_i = sum_k p_k s_ik B_i H_ik A_i exactly.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, local_training
from fedjax_fm.algorithms.lora_rules.cohort import (
    moved_by_mean,
    weights_of_arrived,
)
from fedjax_fm.algorithms.lora_rules.drawn import in_order, is_first, orders_of
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    along_rows,
    as_arrays,
    cut_pairs,
)
from fedjax_fm.algorithms.lora_rules.heads import (
    chosen_of,
    join_heads,
    scaled,
    split_heads,
    with_scales,
)
from fedjax_fm.algorithms.lora_rules.training import Ranks, checked_ranks
from fedjax_fm.algorithms.reduce import kept, mean_of
from fedjax_fm.types import (
    Algorithm,
    ClientOutput,
    Exchange,
    Setting,
    Stack,
    Task,
    Tree,
    Unbilled,
)


class RavanState(NamedTuple):
    """Server state."""

    delta: Tree  # with all s_i = 1
    seed: jax.Array  # u32[2], names the draws of heads
    round: jax.Array  # i32[], rounds that are done


class _Ravan(NamedTuple):
    """The hyper-parameters of `ravan`, checked."""

    local: LocalTraining
    heads: np.ndarray | None

    def n_heads(self, client: jax.Array, factors: Factors) -> jax.Array:
        """i32[], how many heads a client trains."""
        if self.heads is not None:
            return jnp.asarray(self.heads)[client]
        return jnp.int32(max(len(pair.a) for pair in factors.pairs.values()))


def ravan(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    heads: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages the squares s_i H_i, the leaves `lora_h` and `lora_s` of `peft.ravan`.

    The mean is exact, for any weights, where all clients train all heads. A client that
    trains fewer is sent all heads, computes with them, and trains some that are drawn
    anew each round; every head's mean is over those who trained it, by their examples,
    and a head that nobody trained stays. (The paper also chooses heads by what they
    weigh.)

    Sends, a layer with heads of rank r: down h r^2 numbers, up r^2 for each head that
    the client trains; the other trained leaves travel both ways. A and B, the scales,
    which the server sets to 1, and the draws, of a common seed, are not billed.

    Heads are sent in an order that is drawn anew each round, so that error feedback is
    refused: it would add what one head missed to another.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      heads: i32[N], how many heads every client trains; None: all.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `RavanState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no leaves `lora_h` and `lora_s`, or too few for `heads`.

    References:
      Raje et al. 2025, arXiv 2506.05568.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     heads = delta["layer"]["lora_s"] * delta["layer"]["lora_h"][:, 0, 0]
      ...     return jnp.sum((batch["x"] * heads - 1) ** 2, axis=-1), {}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = ravan(Task(loss), optax.sgd(0.5), **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> delta = {"layer": {"lora_h": jnp.zeros((3, 1, 1)), "lora_s": jnp.ones(3)}}
      >>> state, metrics = simulator.run(simulator.init(delta), 1)
      >>> state.delta["layer"]["lora_h"][:, 0, 0].tolist()
      [0.5, 0.5, 0.0]
      >>> metrics["uplink_bytes"].tolist()  # of two clients, three numbers of 4 bytes
      [24]
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    method = _Ravan(local=local, heads=checked_ranks(heads, "heads"))

    def init(delta, key, setting):
        _check_heads(method, split_heads(delta), setting)
        return RavanState(delta, jax.random.key_data(key), jnp.int32(0))

    return Algorithm(init=init, exchanges=(_exchange(method),))


def _check_heads(method: _Ravan, factors: Factors, setting: Setting) -> None:
    """Refuses more heads than there are, and fewer numbers than clients."""
    if method.heads is None:
        return
    fewest = min(len(pair.a) for pair in factors.pairs.values())
    if method.heads.max() > fewest:
        raise ValueError(
            f"expected at most {fewest} heads a client, those of the delta, got "
            f"{method.heads.max()}"
        )
    if len(method.heads) < setting.n_clients:
        raise ValueError(
            f"expected the heads of each of {setting.n_clients} clients, got "
            f"{len(method.heads)}"
        )


def _exchange(method: _Ravan) -> Exchange:
    """The only one of a round."""

    def broadcast(state):
        factors = split_heads(state.delta)
        scales = {layer: pair.b for layer, pair in factors.pairs.items()}
        return scaled(factors), Unbilled((scales, state.seed, state.round))

    def client(backbone, message):
        def one(message, state, data, key):
            start, (scales, seed, round_index) = message
            orders = orders_of(start, seed, round_index, data.id)
            count = method.n_heads(data.id, start)
            chosen = {layer: is_first(x, count) for layer, x in orders.items()}
            whole = with_scales(start, scales)

            def loss(trained, backbone, batch, key):
                delta = join_heads(chosen_of(chosen, trained, whole))
                return method.local.task.loss(delta, backbone, batch, key)

            task = Task(loss, method.local.task.weight)
            local = method.local._replace(task=task)
            end, metrics = local.run(whole, backbone, data, key)
            end = scaled(chosen_of(chosen, end, whole))
            change = in_order(trees.subtract(end, start), orders)
            return ClientOutput(
                upload=cut_pairs(change, None if method.heads is None else count),
                weight=method.local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    def server(state, aggregate, key):
        return _averaged(method, state, aggregate.value), {}

    return Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=kept(),
        batches=method.local.batches,
        same_entries=False,
    )


def _averaged(method: _Ravan, state: RavanState, found: Stack) -> RavanState:
    """The state after the server's step."""
    changes, _ = found.values
    weights = weights_of_arrived(found)
    factors = split_heads(state.delta)

    def in_place(change: Factors, client: jax.Array) -> tuple[Factors, Any]:
        orders = orders_of(factors, state.seed, state.round, client)
        back = {layer: jnp.argsort(order) for layer, order in orders.items()}
        count = method.n_heads(client, factors)
        trained = {layer: is_first(x, count) for layer, x in orders.items()}
        return in_order(as_arrays(change), back), trained

    whole, trained = jax.vmap(in_place)(changes, found.ids)
    pairs = {}
    for layer, (squares, scales) in factors.pairs.items():
        counts = weights[:, None] * trained[layer]  # [C, h]
        sums = jnp.einsum("ch,ch...->h...", counts, whole.pairs[layer].a)
        weight = along_rows(jnp.sum(counts, axis=0), squares)
        pairs[layer] = Pair(squares + mean_of(sums, weight), jnp.ones_like(scales))
    rest = moved_by_mean(weights, factors.rest, whole.rest)
    delta = join_heads(Factors(pairs, rest, factors.form))
    return RavanState(delta, state.seed, state.round + 1)
