"""FLTrust: uploads count by their angle to an update of the server's own.

Cao, Fang, Liu, Gong, 2020, "FLTrust: Byzantine-robust Federated Learning via Trust
Bootstrapping", arXiv 2012.13995.

    server:  g <- the clients' local recipe on the root data
             t_k = max(0, cos(x_k, g)),   value = sum_k t_k |g| / |x_k| x_k / sum_k t_k
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.robust.blocks import sum_over_blocks
from fedjax_fm.robust.distances import combined
from fedjax_fm.robust.rule import Reduced, Rule
from fedjax_fm.trees import select
from fedjax_fm.types import Tree


class RootData(NamedTuple):
    """What the server trains on to see which way is right.

    Attributes:
      arrays: {column: [n, ...]}, as one client has them.
      backbone: the simulator's.
    """

    arrays: Mapping[str, Any]
    backbone: Tree = ()


def fltrust(arrays: Mapping[str, Any], *, backbone: Tree = ()) -> Rule:
    """Weighs uploads by their cosine to the server's own update, at its length.

    The root data are the server's, so they are public to it and its promise is as good
    as they are. Each round the server makes one client's work more; nothing more is
    sent. Where no upload has an acute angle the value is the server's own update. An
    upload whose squared norm is beyond float32 counts nothing.

    Args:
      arrays: {column: [n, ...]}, the root data, as one client has them; 100 rows in the
        paper.
      backbone: of the simulator, what the clients' models stand on.

    Returns:
      A rule whose value is no longer than the server's own update; metric `trust`, the
      mean of t_k. Clients count by nothing else.

    Raises:
      ValueError: there are no rows, or columns of several lengths.

    References:
      Cao et al. 2020, arXiv 2012.13995, equations 2 to 4.

    Example:
      >>> from fedjax_fm import robust
      >>> values, ones = jnp.array([[3.0, 0.0], [-9.0, 0.0]]), jnp.ones(2)
      >>> uploads = robust.Uploads(values, ones > 0, ones)
      >>> rule = fltrust({"x": jnp.ones(4)})
      >>> rule.reduce(uploads, (), jnp.array([1.0, 0.0])).value.tolist()
      [1.0, 0.0]
    """
    lengths = {name: len(np.asarray(column)) for name, column in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            f"expected root data with the same number of rows, at least one, in every "
            f"column, got {lengths}"
        )

    def reduce(uploads, state, reference):
        own = jax.tree.map(lambda g: g[None], reference)
        products, squares, square = sum_over_blocks(_products, uploads.values, own)
        norms, norm = jnp.sqrt(squares), jnp.sqrt(square)
        usable = uploads.accepted & jnp.isfinite(norms) & (norms > 0) & (norm > 0)
        norms = jnp.where(usable, norms, 1.0)
        cosine = products / norms / jnp.where(norm > 0, norm, 1.0)
        trust = jnp.where(usable, jnp.clip(cosine, 0.0, 1.0), 0.0)
        whole = jnp.sum(trust)
        divisor = jnp.where(whole > 0, whole, 1.0)
        value = combined(trust * norm / norms / divisor, uploads.values)
        n = jnp.maximum(jnp.sum(uploads.accepted), 1)
        value = select(whole > 0, value, reference)
        return Reduced(value, metrics={"trust": whole / n})

    return Rule(reduce, root=RootData(dict(arrays), backbone))


def _products(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(<x_k, g>, |x_k|^2, |g|^2) over the coordinates of a block."""
    inner = jnp.matmul(x, g[0], precision="highest")
    return inner, jnp.sum(x**2, axis=1), jnp.sum(g**2)
