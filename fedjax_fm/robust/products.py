"""A rule of distances on the products of low-rank factors.

(B, A) and (B R, R^-1 A) are one update, so that distances between factors depend on how
an update is written. Those between products do not, and need no product:

    <B_i A_i, B_j A_j> = tr((B_i^T B_j) (A_j A_i^T)),   r^2 (d_in + d_out) operations
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.lora_rules.cohort import CohortFactors
from fedjax_fm.algorithms.lora_rules.factors import Pair, along_rows
from fedjax_fm.robust.distances import gram_of
from fedjax_fm.robust.rule import Reduced, Rule, Uploads
from fedjax_fm.types import Stack


def rule_on_products(
    rule: Rule, uploads: Uploads, state: Any, context: tuple
) -> Reduced:
    """The cohort with the rule's coefficients as its shares.

    The method's server stacks the factors by them or takes the SVD, as it did by the
    clients' weights. Leaves beside the factors count in the distances as they are.

    Args:
      rule: has `coefficients`.
      uploads: changes of factors.
      state: of the rule.
      context: (algorithm, exchange, server's state, `AllReceived`, key).

    Returns:
      `CohortFactors`.
    """
    _, exchange, server, aggregate, _ = context
    sent, weights = aggregate.stack.values
    accepted = uploads.accepted

    def shown(x: jax.Array) -> jax.Array:
        return jnp.where(along_rows(accepted, x), x, 0)

    def lifted(one: Any, weight: jax.Array) -> Any:
        return exchange.reduce.lift(server.method, one, weight)

    values = jax.vmap(lifted)(jax.tree.map(shown, sent), shown(weights))
    found = Stack(values, accepted, aggregate.stack.ids)
    cohort: CohortFactors = exchange.reduce.finish(found, aggregate.setting)
    gram = _gram_of_rest(uploads)
    for layer, end in cohort.factors.pairs.items():
        change = uploads.values.pairs[layer]
        gram += product_gram(end, change)
    assert rule.coefficients is not None  # others are refused for such methods
    shares = rule.coefficients(gram, uploads)
    chosen = shares > 0
    heights = {name: jnp.where(chosen, x, 0) for name, x in cohort.heights.items()}
    value = cohort._replace(shares=shares, heights=heights, arrived=jnp.any(chosen))
    return Reduced(value, state)


def _gram_of_rest(uploads: Uploads) -> jax.Array:
    """Inner products of what lies beside the factors; 0 where there is nothing."""
    if not uploads.values.rest:
        return jnp.float32(0)
    return gram_of(uploads._replace(values=uploads.values.rest))


def product_gram(end: Pair, change: Pair) -> jax.Array:
    """Inner products of what clients changed in one layer's product.

    With a = a0 + da and b = b0 + db of every client, where a0 b0 is what all start from,

        a b - a0 b0 = a db + da b0,

    a product of factors with twice the rows, in which the common part is not there to
    be cancelled.

    Args:
      end: factors after training, a [C, r, ..., in] and b [C, r, ..., out].
      change: end - start, in the same shapes.

    Returns:
      f32[C, C], summed over the axes between rows and columns.
    """
    start_b = end.b - change.b
    a = jnp.concatenate([end.a, change.a], axis=1)
    b = jnp.concatenate([change.b, start_b], axis=1)
    exact: dict[str, Any] = {"precision": "highest"}

    def of_client(one: Pair) -> jax.Array:
        """f32[C]: one client at a time, [C, r, r] for every layer of a stack."""
        of_a = jnp.einsum("r...i,cs...i->c...rs", one.a, a, **exact)
        of_b = jnp.einsum("r...o,cs...o->c...rs", one.b, b, **exact)
        return jnp.sum(of_a * of_b, axis=tuple(range(1, of_a.ndim)))

    return jax.lax.map(of_client, Pair(a, b))
