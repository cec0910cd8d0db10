"""The axes of a mesh, and how a backbone lies along one of them."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm.types import Tree

CLIENTS = "clients"  # whose devices compute different clients
MODEL = "model"  # whose devices each have a part of the backbone
VECTORS = ("bias", "scale")  # leaves of nnx that hold a vector, stacked or not


def over_model(tree: Tree, mesh: Mesh) -> Tree:
    """Shardings that split every matrix over the mesh's axis `model`.

    Args:
      tree: arrays or shapes.
      mesh: of `engine.client_mesh`.

    Returns:
      A sharding for each leaf, see `place_of`.
    """

    def one(path: tuple, leaf: Any) -> NamedSharding:
        return place_of(_words(path), leaf.shape, mesh)

    return jax.tree.map_with_path(one, tree)


def place_of(words: Sequence[str], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where a leaf of a backbone lies: a matrix in parts, all else whole.

    A matrix is split along the largest dimension that divides. It stays whole if none
    does, and where the axis has size 1. So do leaves of fewer than two dimensions,
    biases and the scales of norms, by name: stacked over layers they have two
    dimensions, and split they would cost an all-reduce of a few bytes in every norm.

    Args:
      words: of the leaf's path.
      shape: of the leaf.
      mesh: of `engine.client_mesh`.
    """
    parts = mesh.shape[MODEL]
    dims = [d for d in range(len(shape)) if shape[d] % parts == 0]
    is_vector = bool(words) and words[-1] in VECTORS
    if parts == 1 or len(shape) < 2 or not dims or is_vector:
        return NamedSharding(mesh, P())
    largest = max(dims, key=lambda d: shape[d])
    spec = [MODEL if d == largest else None for d in range(len(shape))]
    return NamedSharding(mesh, P(*spec))


def _words(path: tuple) -> list[str]:
    """The names in a path; `value`, which nnx puts behind each, is none."""
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    return [name for name in names if isinstance(name, str) and name != "value"]
