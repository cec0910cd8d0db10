"""Rows of factors that a client draws anew each round, from a seed that both sides know."""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.lora_rules.factors import Factors, Pair


def orders_of(
    factors: Factors, seed: jax.Array, round_index: jax.Array, client: jax.Array
) -> dict[str, jax.Array]:
    """The ranks of every layer in a random order, of which a client trains the first.

    Args:
      factors: of the server.
      seed: u32[2], of the server state.
      round_index: i32[], from 0.
      client: i32[], its number.

    Returns:
      {layer: i32[r]}.
    """
    key = jax.random.wrap_key_data(seed)
    key = jax.random.fold_in(jax.random.fold_in(key, round_index), client)
    orders = {}
    for number, (layer, pair) in enumerate(factors.pairs.items()):
        rank = len(pair.a)
        orders[layer] = jax.random.permutation(jax.random.fold_in(key, number), rank)
    return orders


def in_order(factors: Factors, orders: dict[str, jax.Array]) -> Factors:
    """Factors with their rows in another order.

    Args:
      factors: arrays.
      orders: {layer: i32[r]}, which row comes first, second and so on.

    Returns:
      Factors with the same rest.
    """
    pairs = {}
    for layer, pair in factors.pairs.items():
        order = orders[layer]
        pairs[layer] = Pair(*(None if x is None else x[order] for x in pair))
    return dataclasses.replace(factors, pairs=pairs)


def is_first(order: jax.Array, count: jax.Array) -> jax.Array:
    """Which rows are among the first of an order.

    Args:
      order: i32[r].
      count: i32[], how many are first.

    Returns:
      bool[r].
    """
    return jnp.argsort(order) < count
