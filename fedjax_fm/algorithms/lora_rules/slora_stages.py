"""The two stages of SLoRA, each an exchange that knows when it is its turn."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.local import LocalTraining
from fedjax_fm.algorithms.lora_rules.factors import Factors, Pair, join, split
from fedjax_fm.algorithms.lora_rules.frlora import balanced
from fedjax_fm.algorithms.lora_rules.rule import Rule, exchange_of, new_delta
from fedjax_fm.algorithms.lora_rules.sparse import Entries, add_entries, as_matrix
from fedjax_fm.algorithms.lora_rules.training import FactorTraining
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.types import ClientOutput, Exchange, Task, Tree, Unbilled


class SLoRAState(NamedTuple):
    """Server state.

    Attributes:
      delta: the factors, as given until stage 2, and the other trained leaves.
      values: v in the entries of the mask, {layer: f32[..., k]}.
      places: which entries these are, {layer: i32[..., k]}, of [in, out] made flat.
      round: i32[], rounds that are done.
    """

    delta: Tree
    values: Entries
    places: Entries
    round: jax.Array


class SparseStage(NamedTuple):
    """The hyper-parameters of stage 1, checked.

    Attributes:
      local: loss, optimizer and batches.
      rounds: of stage 1.
      scaling: s of the LoRA layers.
    """

    local: LocalTraining
    rounds: int
    scaling: float


def sparse_exchange(sparse: SparseStage) -> Exchange:
    """Stage 1, and the SVD at its end.

    Args:
      sparse: how clients train, and for how long.

    Returns:
      The first exchange of every round; it selects nobody once stage 1 is over.
    """

    def broadcast(state):
        factors = split(state.delta)
        known = Unbilled((without_update(factors), state.places))
        now = Unbilled(state.round < sparse.rounds)
        return (state.values, factors.rest), known, now

    def client(backbone, message):
        def one(message, state, data, key):
            start, (factors, places), _ = message

            def loss(trained, backbone, batch, key):
                values, rest = trained
                delta = join(Factors(factors.pairs, rest, factors.form))
                moved = add_entries(backbone, factors.pairs, places, values)
                return sparse.local.task.loss(delta, moved, batch, key)

            task = Task(loss, sparse.local.task.weight)
            local = sparse.local._replace(task=task)
            end, metrics = local.run(start, backbone, data, key)
            return ClientOutput(
                upload=trees.subtract(end, start),
                weight=sparse.local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    def server(state, aggregate, key):
        factors = split(state.delta)
        start = state.values, factors.rest
        values, rest = trees.add(start, aggregate.value)  # of nobody it is zero
        factors = Factors(factors.pairs, rest, factors.form)
        state = state._replace(delta=join(factors), values=values)
        is_last = state.round == sparse.rounds - 1
        return jax.lax.cond(is_last, _primed(sparse), lambda x: x, state), {}

    return Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=weighted_mean(),
        batches=sparse.local.batches,
        selects=_is_now,
    )


def _primed(sparse: SparseStage) -> Callable[[SLoRAState], SLoRAState]:
    """The factors that come nearest to what stage 1 has learnt."""

    def of_state(state: SLoRAState) -> SLoRAState:
        factors = split(state.delta)
        pairs = {}
        for layer, pair in factors.pairs.items():
            whole = as_matrix(pair, state.places[layer], state.values[layer])
            pairs[layer] = balanced(whole / sparse.scaling, len(pair.a), layer)
        return state._replace(delta=join(Factors(pairs, factors.rest, factors.form)))

    return of_state


def lora_exchange(sparse: SparseStage, training: FactorTraining) -> Exchange:
    """Stage 2: FedIT's exchange, once stage 1 is over.

    Args:
      sparse: how long stage 1 is.
      training: how clients train factors.

    Returns:
      The second exchange of every round.
    """
    rule = Rule(sent="ab")
    plain = exchange_of(rule, training)

    def broadcast(state):
        return plain.broadcast(state), Unbilled(state.round >= sparse.rounds)

    def address(message, state, client):
        factors, now = message
        mine = (
            factors if plain.address is None else plain.address(factors, state, client)
        )
        return mine, Unbilled(now)

    def client(backbone, message):
        work = plain.client(backbone, message[0])

        def one(message, state, data, key):
            return work(message[0], state, data, key)

        return one

    def server(state, aggregate, key):
        delta, metrics = new_delta(rule, training.layout, state.delta, aggregate.value)
        return state._replace(delta=delta, round=state.round + 1), metrics

    return plain._replace(
        broadcast=broadcast,
        address=address,
        client=client,
        server=server,
        selects=_is_now,
    )


def _is_now(message: tuple, client: jax.Array, key: jax.Array) -> jax.Array:
    """`Exchange.selects`: all clients or none, as the round is."""
    *_, now = message
    return now


def without_update(factors: Factors) -> Factors:
    """Factors whose products are zero.

    Args:
      factors: arrays.

    Returns:
      Factors with zeros for b.
    """
    pairs = {
        layer: Pair(a, jnp.zeros_like(b)) for layer, (a, b) in factors.pairs.items()
    }
    return Factors(pairs, factors.rest, factors.form)
