"""A rule on messages as they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.lora_rules.factors import Factors
from fedjax_fm.robust.root import root_update
from fedjax_fm.robust.rule import Reduced, Rule, Uploads, count_of
from fedjax_fm.trees import select
from fedjax_fm.types import Tree


def rule_on_messages(factors: bool) -> Callable[..., Reduced]:
    """What the method's server receives if one client sends what the rule makes.

    Args:
      factors: whether both factors of pairs are taken as they are.

    Returns:
      `(rule, uploads, state of the rule, context) -> Reduced`.
    """

    def reduce(rule: Rule, uploads: Uploads, state: Any, context: tuple) -> Reduced:
        algorithm, exchange, server, aggregate, key = context
        if not factors:
            _refuse_pairs(uploads.values)
        root = None
        if rule.root is not None:
            root = root_update(rule.root, algorithm, exchange, server=server, key=key)
        reduced = rule.reduce(uploads, state, root)
        has_any = count_of(uploads.accepted) > 0
        zeros = jax.tree.map(jnp.zeros_like, reduced.value)
        message = select(has_any, reduced.value, zeros)
        weight = has_any.astype(jnp.float32)
        total = exchange.reduce.lift(server.method, message, weight)
        value = exchange.reduce.finish(total, aggregate.setting)
        return reduced._replace(value=value)

    return reduce


def _refuse_pairs(message: Tree) -> None:
    """Refuses messages with both factors of a pair."""
    if not isinstance(message, Factors):
        return
    for layer, pair in message.pairs.items():
        if pair.a is not None and pair.b is not None:
            raise ValueError(
                f"clients send both factors of {layer!r}, whose coordinates are no "
                "property of the update B A: (B R, R^-1 A) is the same one. Take "
                "flexlora or flora, where rules act on products, ffa_lora or fed_sb, "
                "whose other factor is common, or factors=True"
            )
