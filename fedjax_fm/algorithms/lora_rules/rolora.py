"""RoLoRA: in turn, one factor is trained, sent and averaged, the other is fixed.

Chen, Guo, Ju, Dalal, Zhu, Khisti, 2024, "Robust Federated Finetuning of LLMs via
Alternating Optimization of LoRA", arXiv 2409.02346 and 2502.01755.

    odd rounds, from 1:  B <- sum_k p_k B_k,  A fixed
    even rounds:         A <- sum_k p_k A_k,  B fixed

The fixed factor is common to all clients, so every round is exact. B comes first: where
B = 0, A has no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    cut,
    cut_pairs,
    only,
    split,
)
from fedjax_fm.algorithms.lora_rules.rule import (
    Rule,
    exchange_of,
    new_delta,
    remembering,
    this_round,
)
from fedjax_fm.algorithms.lora_rules.training import (
    ClientFactors,
    FactorTraining,
    Ranks,
    factor_training,
)
from fedjax_fm.types import Algorithm, Batches, Exchange, Task, Tree, Unbilled


class RoLoRAState(NamedTuple):
    """Server state."""

    delta: Tree
    round: jax.Array  # i32[], rounds that are done


def rolora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Trains, sends and averages B in the first round, A in the second, and so on.

    Sends, a layer: up the factor that is trained, r_k d_out or r_k d_in numbers; down
    the one that the round before changed, half of `fedit` either way. A client that
    missed a round fetches both. The other trained leaves travel always.

    Ranks that differ are not the paper's; rows that a client does not have count as
    zero in the mean, as in `fedit`.

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
      An algorithm whose server state is `RoLoRAState`; the client state is i32[], the
      last round in which the client took part, -1 before its first.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or the ranks do not fit.

    References:
      Chen et al. 2024, arXiv 2409.02346 and 2502.01755, "alternating optimization".

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = rolora(Task(loss), optax.sgd(0.25), **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> state.delta["layer"]["lora_a"].tolist()  # the first round trained B alone
      [[1.0], [1.0], [1.0]]
      >>> state, _ = simulator.run(state, 1)
      >>> state.delta["layer"]["lora_a"].tolist()
      [[1.125], [1.125], [1.0]]
    """
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)

    def first(delta: Tree) -> RoLoRAState:
        return RoLoRAState(delta, jnp.int32(0))

    odd = alternating(Rule(sent="b", fixed="a"), training, parity=0)
    even = alternating(Rule(sent="a", fixed="b"), training, parity=1)
    return remembering(training, first, odd, even)


def alternating(rule: Rule, training: FactorTraining, parity: int) -> Exchange:
    """The exchange of the rounds t, from 0, with t % 2 = parity.

    Args:
      rule: which factor is trained, and which is fixed.
      training: how clients train.
      parity: 0 or 1; the exchange of 1 comes second.

    Returns:
      An exchange for `RoLoRAState`, whose clients keep the last round in which they
      took part.
    """

    def broadcast(state):
        return split(state.delta), Unbilled(state.round)

    def selects(message, client, key):
        return message[1] % 2 == parity

    def address(message, last_round, client):
        factors, round_index = message
        trained = only(factors, rule.sent)
        fixed = only(factors, rule.fixed).pairs
        height = training.height(factors, client)
        # A client of the round before was sent the factor that it trains now; since
        # then only the other one has changed.
        is_known = last_round == round_index - 1
        missing = cut(trained.pairs, training.missing(factors, client, is_known))
        mine = cut_pairs(trained, training.rows(client))
        to_fetch = (cut(fixed, height), missing, factors.rest)
        return ClientFactors(
            trained=Unbilled(mine), fixed=Unbilled(fixed), to_fetch=to_fetch
        )

    def server(state, aggregate, key):
        delta, metrics = new_delta(rule, training.layout, state.delta, aggregate.value)
        # Both exchanges run the server's step; the round ends with the second.
        return RoLoRAState(delta, state.round + parity), metrics

    exchange = exchange_of(rule, training, this_round)
    return exchange._replace(
        broadcast=broadcast, address=address, server=server, selects=selects
    )
