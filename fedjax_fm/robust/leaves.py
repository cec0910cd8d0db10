"""A rule on every leaf of a message by itself."""

import jax

from fedjax_fm.robust.rule import Reduced, Rule


def by_leaf(rule: Rule) -> Rule:
    """The rule on every leaf of the message by itself, not on all as one vector.

    Coordinate rules are the same either way; rules of lengths and distances are not.

    Args:
      rule: without a root.

    Returns:
      A rule with a state for every leaf.

    Raises:
      ValueError: the rule compares with an update of the server's.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import robust
      >>> values = {"a": jnp.array([[0.0], [1.0], [9.0]]), "b": jnp.array([9.0, 1, 0])}
      >>> uploads = robust.Uploads(values, jnp.ones(3, bool), jnp.ones(3))
      >>> rule = by_leaf(robust.coordinate_median())
      >>> rule.reduce(uploads, rule.init({"a": jnp.zeros(1), "b": 0.0}), None).value
      {'a': Array([1.], dtype=float32), 'b': Array(1., dtype=float32)}
    """
    if rule.root is not None:
        raise ValueError("expected a rule without a root, got one that has root data")

    def init(message):
        return tuple(rule.init(leaf) for leaf in jax.tree.leaves(message))

    def reduce(uploads, state, reference):
        leaves, structure = jax.tree.flatten(uploads.values)
        found = [
            rule.reduce(uploads._replace(values=leaf), own, None)
            for leaf, own in zip(leaves, state, strict=True)
        ]
        value = jax.tree.unflatten(structure, [one.value for one in found])
        return Reduced(value, tuple(one.state for one in found))

    return Rule(reduce=reduce, init=init, takes_weights=rule.takes_weights)
