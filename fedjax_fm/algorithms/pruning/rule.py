"""The frame on which rules stand that make masks: gradual pruning's, lottery tickets'.

server:  sends the kept entries of w, and the mask to those who do not hold it
client:  w_k <- w;  local steps on the kept entries;  sends those of w - w_k
server:  w <- server_optimizer(w, sum_k p_k (w - w_k)), on the kept entries
         the rule makes the mask of the next round
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.averaging import Averaging
from fedjax_fm.algorithms.pruning.parts import (
    NO_MASKS,
    Message,
    PrunedState,
    first_state,
    kept_exchange,
    stepped,
    with_version,
    within,
)
from fedjax_fm.algorithms.reduce import mean_of, total
from fedjax_fm.sparsity import Layers, densities, masked, pack_kept, unpack_kept
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Algorithm, ClientOutput, Reduce, Setting, Tree


class Rule(NamedTuple):
    """What makes the masks.

    Attributes:
      first: `(weights by path) -> masks` of the first round.
      next: `(state after the server's step, key) -> state` with the masks, and the
        delta, of the next round.
      own: `(delta) -> ` what the rule keeps at first.
      are_known: whether everybody knows the first masks, as those that keep all.
    """

    first: Callable[[Flat], Flat]
    next: Callable[[PrunedState, jax.Array], PrunedState]
    own: Callable[[Tree], Any]
    are_known: bool


def nothing(delta: Tree) -> tuple:
    """The `own` of rules that keep nothing.

    Args:
      delta: not read.
    """
    return ()


def pruned_averaging(average: Averaging, layers: Layers, rule: Rule) -> Algorithm:
    """The method whose masks a rule makes.

    Args:
      average: local training, weights and the server's step.
      layers: which leaves are pruned.
      rule: makes the masks.

    Returns:
      An algorithm whose server state is `PrunedState`; a client's state is i32[], the
      version of the masks that it holds.
    """
    first = 0 if rule.are_known else NO_MASKS
    exchange = kept_exchange(
        average,
        client=partial(_client, average),
        server=partial(_server, average, rule),
        reduce=mean_kept(),
    )
    return Algorithm(
        init=partial(_init, average, layers, rule),
        exchanges=(exchange,),
        client_init=lambda delta, key: jnp.int32(first),
    )


def _init(
    average: Averaging,
    layers: Layers,
    rule: Rule,
    delta: Tree,
    key: jax.Array,
    setting: Setting,
) -> PrunedState:
    """The first masks, and the delta behind them."""
    masks = rule.first(layers.weights(delta))
    return first_state(average, masked(delta, masks), masks, rule.own(delta))


def _client(average: Averaging, backbone: Tree, message: Message):
    """Trains the kept entries, decoded once for all clients."""
    masks = message.masks
    start = unpack_kept(message.kept, masks)
    local = within(average.local, masks)

    def one(own, held, data, key):
        trained, metrics = local.run(start, backbone, data, key)
        return ClientOutput(
            upload=pack_kept(trees.subtract(start, trained), masks),
            weight=average.weight(data),
            state=own.version,
            metrics=metrics,
        )

    return one


def mean_kept() -> Reduce:
    """The mean, by weights, of uploads that were packed with the server's masks."""

    def lift(server, sent, weight):
        update = unpack_kept(sent, server.masks)
        weighted = jax.tree.map(lambda x: weight * x, update)
        return weighted, jnp.asarray(weight, jnp.float32)

    def finish(found, setting):
        return mean_of(*found)

    return total(lift)._replace(finish=finish)


def _server(average: Averaging, rule: Rule, state: PrunedState, aggregate, key):
    """The step on the kept entries, then the masks of the next round."""
    after = stepped(average, state, aggregate.value)
    return with_version(state, rule.next(after, key)), densities(state.masks)
