"""Small functions on pytrees that several rooms need."""

import jax
import jax.numpy as jnp

from fedjax_fm.types import Tree


def size(tree: Tree) -> int:
    """Number of entries in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Bytes of all leaves as they lie in memory; works on shapes too."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def shapes(tree: Tree) -> Tree:
    """The same tree of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree
    )


def subtract(a: Tree, b: Tree) -> Tree:
    """A - b, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def add(a: Tree, b: Tree) -> Tree:
    """A + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def select(condition: jax.Array, a: Tree, b: Tree) -> Tree:
    """A where the scalar condition holds, else b.

    Unlike a product with 0, it keeps no NaN of the other side.
    """
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def all_finite(tree: Tree) -> jax.Array:
    """bool[]: no NaN and no infinity in any floating leaf."""
    checks = [
        jnp.all(jnp.isfinite(x))
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.bool_(True)


def described(tree: Tree, most: int | None = None) -> str:
    """Paths, types and shapes of the leaves, of the first `most`: 'w float32[3, 4], b
    float32[4]'.
    """
    leaves = jax.tree.leaves_with_path(tree)
    words = []
    for path, leaf in leaves[:most]:
        kind = f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        words.append(f"{path_of(path)} {kind}".strip())
    if len(words) < len(leaves):
        words.append(f"and {len(leaves) - len(words)} more leaves")
    return ", ".join(words) or "nothing"


def path_of(path: tuple) -> str:
    """A leaf's path as dotted words: ('a', 0, 'b') -> 'a.0.b'."""
    names = (getattr(p, "key", getattr(p, "idx", getattr(p, "name", p))) for p in path)
    return ".".join(str(name) for name in names if str(name) not in ("value",))


def difference(expected: Tree, found: Tree) -> str | None:
    """Says how two trees differ in structure, shape or dtype; None when they agree."""
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
