"""Single entries of the frozen kernels: which they are, and their change.

Places are numbers of entries of a matrix [in, out] made flat, i32[..., k] with the
leading axes of a stacked kernel.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.lora_rules.factors import Pair, child
from fedjax_fm.types import Tree

Entries = dict[str, jax.Array]  # {layer: [..., k]}


def random_places(pairs: dict[str, Pair], share: Fraction, key: jax.Array) -> Entries:
    """Random entries of every kernel, as many in each matrix of a stack.

    Args:
      pairs: of the delta, a [r, ..., in] and b [r, ..., out].
      share: of all entries.
      key: of the draw.

    Returns:
      {layer: i32[..., k]}, without repetition.

    Raises:
      ValueError: a matrix would be left without an entry.
    """
    places = {}
    for number, (layer, (a, b)) in enumerate(pairs.items()):
        _, *stacked, n_in = a.shape
        n_entries = n_in * b.shape[-1]
        count = int(share * n_entries)
        if count < 1:
            raise ValueError(
                f"expected a density of at least 1 / {n_entries}, one entry of {layer!r}, "
                f"got density={float(share)}"
            )
        own = jax.random.fold_in(key, number)
        order = jax.random.uniform(own, (*stacked, n_entries)).argsort(axis=-1)
        places[layer] = order[..., :count]
    return places


def as_matrix(pair: Pair, places: jax.Array, values: jax.Array) -> jax.Array:
    """The change of one kernel.

    Args:
      pair: of the delta, for the shape.
      places: i32[..., k].
      values: f32[..., k].

    Returns:
      f32[..., in, out], zero outside of the places.
    """
    n_in, n_out = pair.a.shape[-1], pair.b.shape[-1]
    zeros = jnp.zeros((*places.shape[:-1], n_in * n_out), values.dtype)
    flat = jnp.put_along_axis(zeros, places, values, axis=-1, inplace=False)
    return flat.reshape(*flat.shape[:-1], n_in, n_out)


def add_entries(
    backbone: Tree, pairs: dict[str, Pair], places: Entries, values: Entries
) -> Tree:
    """The backbone with a sparse change in its kernels.

    Args:
      backbone: has the leaves `<layer>.base.kernel` [..., in, out].
      pairs: of the delta, for the shapes.
      places: which entries.
      values: what is added to them.

    Returns:
      A tree like the backbone, of the same dtypes.

    Raises:
      ValueError: a layer has no dense kernel.
    """
    found, structure = jax.tree.flatten_with_path(backbone)
    leaves = {trees.path_of(path): leaf for path, leaf in found}
    for layer, pair in pairs.items():
        name = child(layer, "base.kernel")
        if name not in leaves:
            raise ValueError(
                f"expected a dense kernel {name!r} in the backbone, of which single "
                "entries are trained: load the model with frozen='dense'"
            )
        change = as_matrix(pair, places[layer], values[layer])
        leaves[name] = (leaves[name] + change).astype(leaves[name].dtype)
    return jax.tree.unflatten(structure, leaves.values())
