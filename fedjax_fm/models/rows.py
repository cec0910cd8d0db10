"""Rows of a client's batch over the devices that share a backbone.

The weights lie in parts. A layer's are gathered when its turn comes and dropped after
it, in the backward pass once more, and each device computes its rows of the batch alone
(fully sharded data parallelism; as weights are frozen, no gradient of theirs is sent).
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from fedjax_fm.axes import MODEL
from fedjax_fm.types import Tree

# `with split_rows(True):` around what is traced; JAX traces anew for another value.
split_rows = jax.make_user_context(False)


def in_rows(tree: Tree) -> Tree:
    """The arrays with their first axis over `model`, where that is asked for.

    Args:
      tree: leaves [B, ...]; those whose B the axis does not divide stay as they are.
    """
    parts = devices_for_rows()

    def one(leaf: Any) -> Any:
        if parts == 1 or leaf.ndim == 0 or leaf.shape[0] % parts:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, P(MODEL))

    return jax.tree.map(one, tree)


def gathered(tree: Tree) -> Tree:
    """The arrays whole on every device along `model`, where rows are split.

    Args:
      tree: of arrays.
    """
    if devices_for_rows() == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, P())


def devices_for_rows() -> int:
    """Devices along `model` that rows are split over where this is traced; 1: none."""
    mesh = jax.sharding.get_abstract_mesh()
    is_there = MODEL in mesh.axis_names and MODEL not in mesh.manual_axes
    return mesh.shape[MODEL] if split_rows.value and is_there else 1
