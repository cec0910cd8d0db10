"""LoRA-A2: factors in turn, and of many ranks those that a client's own data needs most.

Koo, Jang, Ok, 2024, "Towards Robust and Efficient Federated Low-Rank Adaptation with
Heterogeneous Clients", arXiv 2410.22815. With components i over all layers, b_i and a_i
their rows in B and A, and D_i what local training of all of them does to b_i:

    rounds 0, 2, ...:  client:  chooses the components of the largest |D_i| |a_i|;
                                b_ik <- local steps from b_i, for these i alone
                       server:  b_i <- mean of b_ik over those who chose i
    rounds 1, 3, ...:  the same with a and b in each other's place

The fixed factor is common to all clients, so every component's mean is exact.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import Factors, Pair
from fedjax_fm.algorithms.lora_rules.rolora import RoLoRAState, alternating
from fedjax_fm.algorithms.lora_rules.rule import Rule
from fedjax_fm.algorithms.lora_rules.training import (
    ClientFactors,
    FactorTraining,
    Ranks,
    factor_training,
    no_round_yet,
)
from fedjax_fm.algorithms.reduce import mean_of, total
from fedjax_fm.types import Algorithm, Batches, Exchange, Rows, Task

Components = dict[str, jax.Array]  # {layer: [r, ...]}, one entry a component


class ChosenRows(NamedTuple):
    """What a client sends of one layer's factor."""

    rows: Rows  # [n, width], those that it chose, in their order
    chosen: jax.Array  # bool[n], which these are


def lora_a2(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    a_optimizer: ClientOptimizer | None = None,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Trains B and A in turn, each client on the components that matter most to it.

    A client with r_k may choose r_k times as many components as there are matrices, in
    whichever of them. It finds them by training all components once, and trains again
    from the server's factors, which doubles its work; with all chosen, it is `rolora`.

    Sends up, a component, d_out or d_in numbers, as the round is, and which they are, a
    bit for each that there is; down, as `rolora`, the factor that the round before
    changed, of all components. The other trained leaves travel always.

    With `ranks`, the rows of an upload are other ones each round, so that error
    feedback is refused: it would add what one component missed to another.

    Components are averaged by examples over those who chose them; one that nobody chose
    stays. How a component matters is the product above; the paper's abstract does not
    say more.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      a_optimizer: of the rounds that train A, which wants another learning rate; None
        means `client_optimizer`.
      ranks: i32[N], r_k of every client, at most the rank of the delta; None: all
        components for all.
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
      Koo et al. 2024, arXiv 2410.22815, "alternating freeze and adaptive rank
      selection".

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"ranks": [1, 1], "local_steps": 1, "batch_size": 1}
      >>> method = lora_a2(Task(loss), optax.sgd(0.25), **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> a = jnp.array([[1.0, 0.5], [0.5, 1.0], [0.0, 0.0]])
      >>> pair = {"lora_a": a, "lora_b": jnp.zeros((2, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> state.delta["layer"]["lora_b"].tolist()  # each client has trained one row
      [[0.5, 0.5], [0.5, 0.5]]
      >>> metrics["uplink_bytes"].tolist()  # of two clients, two numbers and a byte
      [18]
    """
    batches = Batches(batch_size, epochs, local_steps)
    if a_optimizer is None:
        a_optimizer = client_optimizer
    of_b = factor_training(task, client_optimizer, batches, ranks)
    of_a = factor_training(task, a_optimizer, batches, ranks)

    def init(delta, key, setting):
        of_b.check_ranks(delta, setting)
        return RoLoRAState(delta, jnp.int32(0))

    even = _exchange(Rule(sent="b", fixed="a"), of_b, parity=0)
    odd = _exchange(Rule(sent="a", fixed="b"), of_a, parity=1)
    return Algorithm(init=init, exchanges=(even, odd), client_init=no_round_yet)


def _exchange(rule: Rule, training: FactorTraining, parity: int) -> Exchange:
    """The exchange of the rounds t, from 0, with t % 2 = parity."""
    ranks, whole = training.ranks, training._replace(ranks=None)

    def client(backbone, message):
        def one(mine, state, data, key):
            chosen = None
            if ranks is not None:
                probe = whole.run(mine, backbone, data, key)
                scores = _scores(rule, probe.change, mine)
                chosen = _largest(scores, jnp.asarray(ranks)[data.id])
            done = _of_chosen(whole, mine, chosen).run(mine, backbone, data, key)
            change = _sent(rule, done.change, chosen)
            return done.output((change, done.change.rest), data.round)

        return one

    def lift(state, sent, weight):
        changes, rest = sent
        sums = {}
        for layer, change in changes.items():
            weights = weight * change.chosen.astype(jnp.float32)
            sums[layer] = weights[:, None] * _in_place(change), weights
        return sums, jax.tree.map(lambda x: weight * x, rest), weight

    def server(state, aggregate, key):
        sums, rest, weight = aggregate.value
        factors = training.layout.split(state.delta)
        pairs = {}
        for layer, pair in factors.pairs.items():
            old = getattr(pair, rule.sent)
            changes, weights = sums[layer]
            mean = mean_of(changes, weights[:, None]).reshape(old.shape)
            pairs[layer] = pair._replace(**{rule.sent: old + mean})
        moved = trees.add(factors.rest, mean_of(rest, weight))
        delta = training.layout.join(Factors(pairs, moved, factors.form))
        return RoLoRAState(delta, state.round + parity), {}

    exchange = alternating(rule, whole, parity)
    return exchange._replace(
        client=client,
        reduce=total(lift),
        server=server,
        same_entries=ranks is None,
    )


def _scores(rule: Rule, change: Factors, mine: ClientFactors) -> Components:
    """|D_i| |a_i| of every component, or |D_i| |b_i|."""
    scores = {}
    for layer, pair in change.pairs.items():
        moved = jnp.linalg.norm(getattr(pair, rule.sent), axis=-1)
        fixed = getattr(mine.fixed[layer], rule.fixed)
        scores[layer] = moved * jnp.linalg.norm(fixed, axis=-1)
    return scores


def _largest(scores: Components, rank: jax.Array) -> Components:
    """bool: which components are among the `rank` times as many as there are matrices."""
    flat, form = ravel_pytree(scores)
    n_matrices = sum(x[0].size for x in scores.values())
    order = jnp.argsort(-flat, stable=True)
    is_chosen = jnp.argsort(order, stable=True) < rank * n_matrices
    return jax.tree.map(lambda x: x > 0, form(is_chosen.astype(flat.dtype)))


def _of_chosen(
    training: FactorTraining, mine: ClientFactors, chosen: Components | None
) -> FactorTraining:
    """Training that moves the chosen components alone."""
    if chosen is None:
        return training
    start = mine.trained

    def join(factors: Factors) -> Any:
        pairs = {}
        for layer, pair in factors.pairs.items():
            is_chosen = chosen[layer][..., None]
            pairs[layer] = Pair(
                *(
                    x if y is None else jnp.where(is_chosen, x, y)
                    for x, y in zip(pair, start.pairs[layer], strict=True)
                )
            )
        return training.layout.join(dataclasses.replace(factors, pairs=pairs))

    return training._replace(layout=training.layout._replace(join=join))


def _sent(
    rule: Rule, change: Factors, chosen: Components | None
) -> dict[str, ChosenRows]:
    """The changes of the chosen components, packed."""
    sent = {}
    for layer, pair in change.pairs.items():
        moved = getattr(pair, rule.sent)
        rows = moved.reshape(-1, moved.shape[-1])
        if chosen is None:
            is_chosen = jnp.ones(len(rows), bool)
        else:
            is_chosen = chosen[layer].reshape(-1)
        first = jnp.argsort(~is_chosen, stable=True)
        values = jnp.where(is_chosen[:, None], rows, 0)[first]
        count = jnp.sum(is_chosen, dtype=jnp.int32)
        sent[layer] = ChosenRows(Rows(values, count), is_chosen)
    return sent


def _in_place(change: ChosenRows) -> jax.Array:
    """[n, width], zeros where a component was not chosen."""
    first = jnp.argsort(~change.chosen, stable=True)
    return change.rows.values[jnp.argsort(first)]
