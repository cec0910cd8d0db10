"""The frame on which all rules stand.

A `Rule` says what happens to the factors A and B; the rest is the same for all.

    client:  local steps on the factors that it is sent, and on the one that it keeps
    server:  new factors <- combine(sum over the cohort); the old ones where no upload
             arrived
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedjax_fm import trees
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Layout,
    Pair,
    Part,
    as_arrays,
    cut,
    cut_pairs,
    filled,
    only,
)
from fedjax_fm.algorithms.lora_rules.training import (
    ClientFactors,
    FactorTraining,
    after_training,
    no_round_yet,
)
from fedjax_fm.algorithms.parts import DeltaState
from fedjax_fm.algorithms.reduce import mean_of, weighted_mean
from fedjax_fm.types import (
    Algorithm,
    ClientData,
    Exchange,
    Reduce,
    Setting,
    Tree,
    Unbilled,
)

Combine = Callable[[Any, Factors], tuple[Factors, dict[str, jax.Array]]]
NextState = Callable[[Any, ClientData], Any]


def sums_by_weight() -> Reduce:
    """(sum_k n_k factors_k, sum_k n_k); rows beyond a client's rank count as zero."""
    lift = weighted_mean().lift

    def padded(server, factors, weight):
        return lift(server, as_arrays(factors), weight)

    return Reduce(lift=padded, finish=_as_sums)


def _as_sums(total, setting):
    return total


def mean_or(old: Tree, sums: Tree, weight: jax.Array) -> Tree:
    """The mean of a cohort, or what there was before.

    Args:
      old: taken where the weight is 0.
      sums: of weighted values.
      weight: the sum of the weights, broadcasts over the leaves.

    Returns:
      sums / weight.
    """
    return trees.select(weight > 0, mean_of(sums, weight), old)


def mean_by_weight(value: tuple, old: Factors) -> tuple[Factors, dict]:
    """The mean over the cohort, sum_k p_k factors_k with p_k = n_k / sum of n.

    Args:
      value: of `sums_by_weight`.
      old: taken where no upload arrived.

    Returns:
      (factors, no metrics).
    """
    sums, weight = value
    return mean_or(old, sums, weight), {}


class Rule(NamedTuple):
    """A LoRA aggregation rule, in the terms of its paper.

    Every factor is one of `sent`, `fixed` and `personal`.

    Attributes:
      sent: factors that clients train and send, and the server combines.
      fixed: factors that clients need and do not train. All clients know them, they are
        not billed.
      personal: the factor that a client trains and keeps, as its state.
      reduce: what the server sees of a cohort; `lift(server_state, factors, weight)` is
        given the factors with which a client ended, cut to its rank.
      combine: `(value of reduce, old factors) -> (new factors, metrics)`.
    """

    sent: Part = "ab"
    fixed: Part = ""
    personal: Part = ""
    reduce: Reduce = sums_by_weight()
    combine: Combine = mean_by_weight


def algorithm_of(
    rule: Rule, training: FactorTraining, client: Callable | None = None
) -> Algorithm:
    """The algorithm of a rule with one exchange, whose server state is `DeltaState`.

    Args:
      rule: what happens to A and B.
      training: how clients train.
      client: `Exchange.client` of a rule without a personal factor; None: `client_of`.

    Returns:
      An algorithm; the client state is the personal factor, () without one.
    """
    layout, exchange = training.layout, exchange_of(rule, training)
    if client is not None:
        exchange = exchange._replace(client=client)
    init = starts_from(training, DeltaState)
    algorithm = Algorithm(init=init, exchanges=(exchange,))
    if not rule.personal:
        return algorithm

    def client_init(delta, key):
        return _personal_factor(rule, layout.split(delta))

    def model(server, own, backbone):
        if own is None:
            return server.delta, backbone
        return personal_delta(rule, layout, server.delta, own), backbone

    return algorithm._replace(client_init=client_init, model=model)


def starts_from(
    training: FactorTraining, state_of: Callable[[Tree], Any]
) -> Callable[..., Any]:
    """`Algorithm.init`: the server's state, after a check of the ranks.

    Args:
      training: its ranks are checked.
      state_of: `(delta) -> state`.

    Returns:
      `(delta, key, setting) -> state`.
    """

    def init(delta: Tree, key: jax.Array, setting: Setting) -> Any:
        training.check_ranks(delta, setting)
        return state_of(delta)

    return init


def remembering(
    training: FactorTraining, state_of: Callable[[Tree], Any], *exchanges: Exchange
) -> Algorithm:
    """The algorithm of a rule whose clients keep the last round they took part in.

    Args:
      training: its ranks are checked.
      state_of: `(delta) -> ` the server's first state.
      *exchanges: of a round, with `this_round`.
    """
    return Algorithm(
        init=starts_from(training, state_of),
        exchanges=exchanges,
        client_init=no_round_yet,
    )


def same_state(state: Any, data: ClientData) -> Any:
    """The client's state stays as it is."""
    return state


def this_round(state: Any, data: ClientData) -> jax.Array:
    """i32[]: the client's state is the last round in which it took part."""
    return data.round


def exchange_of(
    rule: Rule, training: FactorTraining, next_state: NextState = same_state
) -> Exchange:
    """The exchange of a rule, for a server state with nothing but the delta.

    Args:
      rule: what happens to A and B.
      training: how clients train.
      next_state: `(client state, data) -> client state`, of rules without a personal
        factor.

    Returns:
      An exchange; rules replace the fields in which they differ.
    """

    def broadcast(state):
        factors = training.layout.split(state.delta)
        trained = only(factors, rule.sent)
        fixed = only(factors, rule.fixed).pairs
        return ClientFactors(trained, Unbilled(fixed))

    def address(message, state, client):
        trained = cut_pairs(message.trained, training.rows(client))
        return ClientFactors(trained, Unbilled(message.fixed))

    def server(state, aggregate, key):
        delta, metrics = new_delta(rule, training.layout, state.delta, aggregate.value)
        return DeltaState(delta), metrics

    return Exchange(
        broadcast=broadcast,
        client=client_of(rule, training, next_state),
        server=server,
        reduce=reduce_of(rule, training.layout),
        batches=training.local.batches,
        address=None if training.ranks is None else address,
    )


def client_of(
    rule: Rule, training: FactorTraining, next_state: NextState = same_state
) -> Callable:
    """The client that trains, and uploads the change of the factors that are sent.

    Args:
      rule: what happens to A and B.
      training: how clients train.
      next_state: `(client state, data) -> client state`, of rules without a personal
        factor.

    Returns:
      `Exchange.client`.
    """

    def client(backbone, message):
        def one(mine, state, data, key):
            if rule.personal:
                rows = training.rows(data.id)
                own = cut(_as_pairs(rule, state), rows)
                mine = mine._replace(trained=filled(mine.trained, own))
            done = training.run(mine, backbone, data, key)
            if rule.personal:
                state = _personal_factor(rule, done.end)
            else:
                state = next_state(state, data)
            return done.output(only(done.change, rule.sent), state)

        return one

    return client


def reduce_of(rule: Rule, layout: Layout) -> Reduce:
    """The rule's reduction for uploads, which are changes of factors.

    Args:
      rule: its `reduce` is given the factors with which a client ended.
      layout: which leaves are factors.

    Returns:
      A reduction of uploads.
    """

    def lift(server, change, weight):
        start = only(layout.split(server.delta), rule.sent)
        return rule.reduce.lift(server, after_training(start, change), weight)

    return rule.reduce._replace(lift=lift)


def new_delta(
    rule: Rule, layout: Layout, delta: Tree, value: Any
) -> tuple[Tree, dict[str, jax.Array]]:
    """The delta after a round.

    Args:
      rule: how the factors are combined.
      layout: which leaves are factors.
      delta: the delta before.
      value: of the rule's reduction.

    Returns:
      (delta, metrics).
    """
    factors = layout.split(delta)
    sent, metrics = rule.combine(value, only(factors, rule.sent))
    return layout.join(filled(sent, factors.pairs)), metrics


def personal_delta(
    rule: Rule, layout: Layout, delta: Tree, own: dict[str, jax.Array]
) -> Tree:
    """The delta of one client.

    Args:
      rule: says which factor is personal.
      layout: which leaves are factors.
      delta: the server's.
      own: the client's state, {layer: f32[r, ..., in or out]}.

    Returns:
      The server's delta with the client's own factor.
    """
    factors = layout.split(delta)
    mine = dataclasses.replace(factors, pairs=_as_pairs(rule, own))
    return layout.join(filled(mine, factors.pairs))


def _personal_factor(rule: Rule, factors: Factors) -> dict[str, jax.Array]:
    """{layer: f32[r, ..., in or out]}."""
    return {layer: getattr(p, rule.personal) for layer, p in factors.pairs.items()}


def _as_pairs(rule: Rule, own: dict[str, jax.Array]) -> dict[str, Pair]:
    """The inverse of `_personal_factor`; the other factor is left out."""
    return {layer: Pair(**{rule.personal: rows}) for layer, rows in own.items()}
