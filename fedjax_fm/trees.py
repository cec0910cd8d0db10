"""Small functions on pytrees that several packages need."""

import jax
import jax.numpy as jnp

from fedjax_fm.types import Tree


def size(tree: Tree) -> int:
    """Number of entries in all leaves.

    Args:
      tree: arrays, or their shapes.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Bytes of all leaves as they lie in memory.

    Args:
      tree: arrays, or their shapes.
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def shapes(tree: Tree) -> Tree:
    """The same tree of `jax.ShapeDtypeStruct`.

    Args:
      tree: arrays or numbers.
    """

    def shape(leaf):
        dtype = jnp.result_type(leaf)
        return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)

    return jax.tree.map(shape, tree)


def subtract(a: Tree, b: Tree) -> Tree:
    """The difference of two trees, a - b leaf by leaf.

    Args:
      a: arrays.
      b: arrays, in the same structure.
    """
    return jax.tree.map(jnp.subtract, a, b)


def add(a: Tree, b: Tree) -> Tree:
    """The sum of two trees, a + b leaf by leaf.

    Args:
      a: arrays.
      b: arrays, in the same structure.
    """
    return jax.tree.map(jnp.add, a, b)


def select(condition: jax.Array, a: Tree, b: Tree) -> Tree:
    """One of two trees: `a` where the condition holds, else `b`.

    Unlike a product with 0, it keeps no NaN of the other side.

    Args:
      condition: bool[].
      a: arrays.
      b: arrays, in the same structure.
    """
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def all_finite(tree: Tree) -> jax.Array:
    """bool[]: no NaN and no infinity in any floating leaf.

    Args:
      tree: arrays.
    """
    checks = [
        jnp.all(jnp.isfinite(x))
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    if not checks:
        return jnp.bool_(True)
    return jnp.all(jnp.stack(checks))


def described(tree: Tree, most: int | None = None) -> str:
    """Paths, types and shapes of the leaves: 'w float32[3, 4], b float32[4]'.

    Args:
      tree: arrays or numbers.
      most: how many leaves are named; None for all.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm import trees
      >>> trees.described({"w": np.zeros((3, 4)), "b": np.zeros(4)}, most=1)
      'b float32[4], and 1 more'
    """
    leaves = jax.tree.leaves_with_path(tree)
    words = []
    for path, leaf in leaves[:most]:
        shape = list(jnp.shape(leaf))
        word = f"{path_of(path)} {jnp.result_type(leaf)}{shape}"
        words.append(word.strip())
    n_more = len(leaves) - len(words)
    if n_more > 0:
        words.append(f"and {n_more} more")
    return ", ".join(words) or "nothing"


def path_of(path: tuple) -> str:
    """A leaf's path as dotted words: ('a', 0, 'b') -> 'a.0.b'.

    Args:
      path: of keys, as `jax.tree.leaves_with_path` gives it. The last one is left out
        where it is the array inside an nnx variable.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from fedjax_fm import trees
      >>> model = nnx.Dict(value=nnx.Dict(kernel=nnx.Param(1.0)))
      >>> for path, _ in jax.tree.leaves_with_path(nnx.state(model)):
      ...     print(trees.path_of(path))
      value.kernel
    """
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return ".".join(_name_of(key) for key in path)


def _name_of(key) -> str:
    """The name in a key of a path, whatever kind of container it is of."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def difference(expected: Tree, found: Tree) -> str | None:
    """Says how two trees differ in structure, shape or dtype; None when they agree.

    Args:
      expected: arrays, or their shapes.
      found: arrays, or their shapes.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm import trees
      >>> trees.difference({"w": np.zeros(2)}, {"w": np.zeros(3)})
      'w: expected float64[2], got float64[3]'
    """
    a, a_def = jax.tree.flatten_with_path(expected)
    b, b_def = jax.tree.flatten_with_path(found)
    if a_def != b_def:
        paths_a, paths_b = {path_of(p) for p, _ in a}, {path_of(p) for p, _ in b}
        if paths_a == paths_b:
            return (
                f"the same leaves in another container: expected {a_def}, got {b_def}"
            )
        return (
            f"missing leaves {sorted(paths_a - paths_b)}, extra leaves "
            f"{sorted(paths_b - paths_a)}"
        )
    for (path, x), (_, y) in zip(a, b, strict=True):
        if x.shape != y.shape or x.dtype != y.dtype:
            return (
                f"{path_of(path) or 'the leaf'}: expected {x.dtype}{list(x.shape)}, "
                f"got {y.dtype}{list(y.shape)}"
            )
    return None
