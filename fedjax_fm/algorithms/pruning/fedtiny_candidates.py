"""FedTiny's candidates: masks of one model whose layers are of several densities.

Huang, Zhang, Sun, Fang, Yuan, Wu, 2022, arXiv 2212.01977, adaptive batch normalisation
selection.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.sparsity import (
    Layers,
    kept_count,
    magnitude,
    pack_kept,
    pack_masks,
    top_of_layers,
)
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Tree, Unbilled


class Candidates(NamedTuple):
    """What clients are sent first."""

    kept: Any  # of the pruned leaves of all candidates, `Rows`
    bits: Any  # their masks
    others: Tree  # the other leaves, once
    masks: Any  # as arrays, unbilled


def candidate_masks(
    weights: Flat,
    density: float,
    n: int,
    key: jax.Array,
    *,
    spread: float = 0.5,
    layers: Layers = Layers(),  # noqa: B008
) -> Flat:
    """Masks by magnitude whose layers are of several densities, drawn at random.

    Args:
      weights: of `Layers.weights`.
      density: share of all entries that is kept at most, up to rounding, which leaves
        one entry of each layer.
      n: candidates; the first has this density in every layer.
      key: of the draws.
      spread: as for `fedtiny_selection`.
      layers: says which axes count layers.

    Returns:
      bool[n, ...] by path.
    """
    sizes = jnp.array([leaf.size for leaf in weights.values()], jnp.float32)
    shape = (n, len(weights))
    drawn = jax.random.uniform(key, shape, minval=1 - spread, maxval=1 + spread)
    drawn = drawn.at[0].set(1.0)
    # So much smaller that the wanted number is not exceeded.
    excess = jnp.sum(drawn * sizes, axis=1) / jnp.sum(sizes)
    shares = jnp.clip(density * drawn / jnp.maximum(excess, 1)[:, None], 0, 1)
    scores = magnitude(weights)

    def one(shares):
        counts = {}
        for i, (name, leaf) in enumerate(weights.items()):
            counts[name] = kept_count(shares[i], layers.rows(name, leaf)[1])
        return top_of_layers(scores, counts, layers)

    return jax.vmap(one)(shares)


def message_of(delta: Tree, masks: Flat, layers: Layers) -> Candidates:
    """The kept entries of each candidate; what all have, once.

    Args:
      delta: the pretrained model.
      masks: bool[C, ...] by path.
      layers: which leaves are pruned.
    """
    weights = layers.weights(delta)
    others = {
        trees.path_of(path): leaf
        for path, leaf in jax.tree.leaves_with_path(delta)
        if trees.path_of(path) not in weights
    }
    (n, *_), *_ = [mask.shape for mask in masks.values()]
    of_all = {name: jnp.broadcast_to(x, (n, *x.shape)) for name, x in weights.items()}
    return Candidates(
        kept=pack_kept(of_all, masks),
        bits=pack_masks(masks),
        others=others,
        masks=Unbilled((masks, delta)),
    )
