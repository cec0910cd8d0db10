"""One exchange of a method, with a robust rule in the place of its mean."""

from typing import Any, NamedTuple

import jax

from fedjax_fm.robust.fits import is_of_products
from fedjax_fm.robust.messages import rule_on_messages
from fedjax_fm.robust.products import rule_on_products
from fedjax_fm.robust.received import all_received, received, screened
from fedjax_fm.robust.rule import Rule, count_of
from fedjax_fm.trees import select
from fedjax_fm.types import Aggregate, Algorithm, Exchange


class RobustState(NamedTuple):
    """Server state.

    Attributes:
      method: of the method behind the rule.
      rules: the rule's, one an exchange.
      round: i32[].
    """

    method: Any
    rules: tuple
    round: jax.Array


def with_rule(
    algorithm: Algorithm,
    rule: Rule,
    index: int,
    most_weight: float | None,
    factors: bool,
) -> Exchange:
    """One exchange with the rule.

    Args:
      algorithm: the method.
      rule: in the place of its mean.
      index: of the exchange.
      most_weight: what a client counts at most; None: all count the same.
      factors: whether both factors of pairs are taken as they are.

    Returns:
      An exchange for `RobustState`.
    """
    exchange, n_exchanges = algorithm.exchanges[index], len(algorithm.exchanges)
    reduce = rule_on_products if is_of_products(exchange) else rule_on_messages(factors)

    def broadcast(state):
        return exchange.broadcast(state.method)

    def client(backbone, message):
        one_of_method = exchange.client(backbone, message)

        def one(mine, state, data, key):
            return screened(one_of_method(mine, state, data, key))

        return one

    def server(state, aggregate, key):
        found = received(aggregate.value.stack, most_weight)
        context = (algorithm, exchange, state, aggregate.value, key)
        before = state.rules[index]
        reduced = reduce(rule, found.uploads, before, context)
        n_accepted = count_of(found.uploads.accepted)
        own, metrics = exchange.server(
            state.method, Aggregate(reduced.value, n_accepted), key
        )
        after = select(n_accepted > 0, reduced.state, before)
        ours = {**found.metrics, **(reduced.metrics or {})}
        if n_exchanges > 1:
            ours = {f"{name}_{index}": value for name, value in ours.items()}
        return RobustState(
            method=own,
            rules=(*state.rules[:index], after, *state.rules[index + 1 :]),
            round=state.round + (index == n_exchanges - 1),
        ), metrics | ours

    return exchange._replace(
        broadcast=broadcast, client=client, server=server, reduce=all_received()
    )
