"""FADA's server: domain identifiers, what extractors are to do, and the target's parts."""

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import trees
from fedjax_fm.algorithms.fada_losses import attention, confusing, telling
from fedjax_fm.algorithms.fada_networks import EXTRACTOR, OF_TARGET
from fedjax_fm.algorithms.fada_parts import FADAMethod, FADAState
from fedjax_fm.algorithms.fada_source import chosen
from fedjax_fm.types import Aggregate, Stack, Tree


def tell(
    method: FADAMethod, state: FADAState, aggregate: Aggregate, key: jax.Array
) -> tuple[FADAState, dict]:
    """The identifiers' step, and what extractors are to do about it.

    Args:
      method: the hyper-parameters.
      state: of the server.
      aggregate: a `Stack` of features and of which rows are real.
      key: not used.

    Returns:
      (state, no metrics).
    """
    found = aggregate.value._replace(values=aggregate.value.values[0])
    features, real = by_client(found, len(state.present))
    there = jnp.any(real, axis=1)
    pairs = there & there[method.target]
    pairs &= jnp.arange(len(there)) != method.target
    state = _taught(method, state, features, real=real, pairs=pairs)

    def loss(features):
        def of_pair(identifier, own, mask):
            logits = method.networks.identify_domain(identifier, own)
            other = method.networks.identify_domain(identifier, features[method.target])
            return confusing(logits, mask, other, real[method.target])

        losses = jax.vmap(of_pair)(state.identifiers, features, real)
        return method.source.strengths.alignment * jnp.sum(pairs * losses)

    gradients = jax.grad(loss)(features)
    return state._replace(features=features, real=real, gradients=gradients), {}


def _taught(
    method: FADAMethod, state: FADAState, features, *, real, pairs
) -> FADAState:
    """The identifiers of the pairs that are there, after a step."""
    of_target, real_of_target = features[method.target], real[method.target]

    def loss(identifier, own, mask):
        logits = method.networks.identify_domain(identifier, own)
        other = method.networks.identify_domain(identifier, of_target)
        return telling(logits, mask, other, real_of_target)

    def step(identifier, moments, own, mask, is_there):
        gradients = jax.grad(loss)(identifier, own, mask)
        optimizer = method.identifier_optimizer
        updates, after = optimizer.update(gradients, moments, identifier)
        moved = optax.apply_updates(identifier, updates), after
        return trees.select(is_there, moved, (identifier, moments))

    each = state.identifiers, state.optimizer, features, real, pairs
    identifiers, optimizer = jax.vmap(step)(*each)
    return state._replace(identifiers=identifiers, optimizer=optimizer)


def adapt(
    method: FADAMethod, state: FADAState, aggregate: Aggregate, key: jax.Array
) -> tuple[FADAState, dict]:
    """The target's parts, moved by itself and by the sources as they are worth it.

    Args:
      method: the hyper-parameters.
      state: of the server.
      aggregate: a `Stack` of the target's gains and of its extractor's change.
      key: not used.

    Returns:
      (state, the attention of every client).
    """
    (sent, weights), active, _ = aggregate.value
    arrived = active & (weights > 0)
    place = jnp.argmax(arrived)
    gains, own = jax.tree.map(lambda x: x[place], sent)
    if len(state.present) > 1:
        gains = jnp.insert(gains, method.target, 0.0)
    shares = attention(gains, state.present, method.temperature)

    def mixed(x, changes):
        return x + jnp.tensordot(shares, changes, axes=1)

    parts = chosen(state.delta, OF_TARGET)
    parts[EXTRACTOR] = trees.add(parts[EXTRACTOR], own)
    delta = {**state.delta, **jax.tree.map(mixed, parts, state.changes)}
    before = state.delta, jnp.zeros_like(shares)
    delta, shares = trees.select(jnp.any(arrived), (delta, shares), before)
    named = {f"attention_{k}": shares[k] for k in range(len(shares))}
    return state._replace(delta=delta, attention=shares), named


def by_client(found: Stack, n_clients: int) -> Tree:
    """Leaves [C, ...] in the cohort's order -> [N, ...]; zeros for those absent.

    Args:
      found: of a cohort.
      n_clients: N.
    """
    ids = jnp.where(found.active, found.ids, n_clients)

    def one(x):
        empty = jnp.zeros((n_clients, *x.shape[1:]), x.dtype)
        return empty.at[ids].set(x, mode="drop")

    return jax.tree.map(one, found.values)
