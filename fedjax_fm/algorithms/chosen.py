"""A method's exchanges for some of the cohort alone, who were chosen in the round."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.types import Algorithm, Exchange, Repeat, Unbilled

NOBODY = -1  # an id that no client has


class ChoiceState(NamedTuple):
    """Server state."""

    method: Any  # of the method behind the choice
    chosen: jax.Array  # i32[m], of this round; NOBODY where fewer candidates arrived


class ForChosen(NamedTuple):
    """A message of the method, and whom it is for."""

    own: Any
    chosen: Any  # i32[m], not billed


def for_chosen(algorithm: Algorithm, cohort_size: int) -> Iterator[Exchange | Repeat]:
    """The exchanges of a method, for those whom `ChoiceState.chosen` names.

    Args:
      algorithm: the method; its trainable tree is with every client already.
      cohort_size: m, by which the method divides.

    Yields:
      Each exchange, or `Repeat` of them.
    """
    for group in algorithm.exchanges:
        if isinstance(group, Exchange):
            yield _limited(algorithm, group, cohort_size)
            continue
        inner = [_limited(algorithm, one, cohort_size) for one in group.exchanges]
        yield group._replace(exchanges=tuple(inner))


def _limited(algorithm: Algorithm, exchange: Exchange, cohort_size: int) -> Exchange:
    """One exchange of the method, for the chosen alone."""

    def selects(message, client, key):
        is_chosen = jnp.any(message.chosen == client)
        if exchange.selects is None:
            return is_chosen
        return is_chosen & exchange.selects(message.own, client, key)

    def finish(total, setting):
        own = setting._replace(cohort_size=cohort_size)
        return exchange.reduce.finish(total, own)

    def lift(state, sent, weight):
        return exchange.reduce.lift(state.method, sent, weight)

    def server(state, aggregate, key):
        method, metrics = exchange.server(state.method, aggregate, key)
        return state._replace(method=method), metrics

    return _for_message(algorithm, exchange)._replace(
        server=server,
        reduce=exchange.reduce._replace(lift=lift, finish=finish),
        selects=selects,
    )


def _for_message(algorithm: Algorithm, exchange: Exchange) -> Exchange:
    """The exchange's way down; what is the trainable tree itself is not billed again."""
    own_address = exchange.address

    def broadcast(state):
        sent = {id(leaf) for leaf in jax.tree.leaves(algorithm.delta(state.method))}

        def mark(part):
            return Unbilled(part) if id(part) in sent else part

        own = exchange.broadcast(state.method)
        return ForChosen(jax.tree.map(mark, own), Unbilled(state.chosen))

    def client(backbone, message):
        one_of_method = exchange.client(backbone, message.own)

        def one(mine, state, data, key):
            own = mine.own if own_address is None else mine
            return one_of_method(own, state, data, key)

        return one

    def address(message, state, client):
        return own_address and own_address(message.own, state, client)

    return exchange._replace(
        broadcast=broadcast,
        client=client,
        address=None if own_address is None else address,
    )
