"""What FedEx-LoRA and FLoRA add to the frozen layers, how it travels, and how a
client's backbone takes it in.

The server keeps the whole sum and, apart from it, what the last round added. A client
of the last round is sent the new part only; one that missed a round is sent the whole
sum, densely; one that never came gets it with the frozen model, which no rule's bill
counts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    child,
    is_rows,
    plain,
    product,
)
from fedjax_fm.types import Rows, Setting, Tree


class Residual(NamedTuple):
    """By the dotted path of the adapted layer; scaled, ready to be added."""

    total: dict[str, jax.Array]  # [..., in, out], without the newest part
    newest: dict[str, Any]  # Pair of Rows [rows, ...], or [..., in, out]
    round: jax.Array  # i32[], rounds that are done


def stack_height(ranks: np.ndarray | None, rank: int, n_clients: int) -> int:
    """Rows that the stacked factors of any `n_clients` clients may take."""
    if ranks is None:
        return rank * n_clients
    return int(np.sort(np.minimum(ranks, rank))[-n_clients:].sum())


def pays(pair: Pair, height: int) -> bool:
    """Whether `height` stacked rows are fewer numbers than the dense matrix."""
    n_in, n_out = pair.a.shape[-1], pair.b.shape[-1]
    return height * (n_in + n_out) < n_in * n_out


def start(factors: Factors, heights: Mapping[str, int | None]) -> Residual:
    """Nothing added yet; heights None where the newest part is dense."""

    def empty(pair: Pair, height: int | None) -> Any:
        if height is None:
            return jnp.zeros_like(product(pair))
        return Pair(
            *(
                Rows(jnp.zeros((height, *x.shape[1:]), x.dtype), jnp.int32(0))
                for x in pair
            )
        )

    newest = {
        layer: empty(pair, heights[layer]) for layer, pair in factors.pairs.items()
    }
    return Residual(
        {n: jnp.zeros_like(product(p)) for n, p in factors.pairs.items()},
        newest,
        jnp.int32(0),
    )


def grown(residual: Residual, newest: dict[str, Any]) -> Residual:
    """After one more round."""
    return Residual(whole(residual), newest, residual.round + 1)


def whole(residual: Residual) -> dict[str, jax.Array]:
    """[..., in, out] by layer, the newest part included."""
    return {
        layer: total + _dense(residual.newest[layer])
        for layer, total in residual.total.items()
    }


def _dense(part: Any) -> jax.Array:
    return product(plain(part)) if isinstance(part, Pair) else part


def packed(pair: Pair, real: jax.Array, height: int) -> Pair:
    """The rows [rows, ...] for which `real` bool[rows] holds, in front, as `Rows` of `height`.

    More of them than fit make NaN, which stops the run: nothing is left out in silence.
    """
    count = jnp.sum(real, dtype=jnp.int32)
    order = jnp.argsort(~real, stable=True)[:height]

    def one(x: jax.Array) -> Rows:
        keep = real[order].reshape(-1, *[1] * (x.ndim - 1))
        values = jnp.where(count > height, jnp.nan, jnp.where(keep, x[order], 0))
        missing = height - values.shape[0]
        return Rows(
            jnp.pad(values, ((0, missing), *[(0, 0)] * (x.ndim - 1))),
            jnp.minimum(count, height),
        )

    return Pair(one(pair.a), one(pair.b))


def bought(residual: Residual, last: jax.Array) -> tuple:
    """What a client that last came in round `last` is sent of it, for the bill."""
    took_part = last >= 0
    fresh = took_part & (last == residual.round - 1)
    missed = took_part & ~fresh

    def rows_first(x):
        return jnp.moveaxis(x, -2, 0)

    def newest(part: Any) -> Any:
        if isinstance(part, Pair):
            return jax.tree.map(
                lambda x: Rows(x.values, jnp.where(fresh, x.count, 0)),
                part,
                is_leaf=is_rows,
            )
        return Rows(rows_first(part), jnp.where(fresh, part.shape[-2], 0))

    everything = {
        n: Rows(rows_first(x), jnp.where(missed, x.shape[-2], 0))
        for n, x in whole(residual).items()
    }
    return {layer: newest(part) for layer, part in residual.newest.items()}, everything


def merged(backbone: Tree, residual: Residual) -> Tree:
    """The backbone with the residual added to the kernels `<layer>.base.kernel` [...,
    in, out], in their dtype.

    Raises:
      ValueError: a layer has no dense kernel, as with 4-bit blocks.
    """
    found, structure = jax.tree.flatten_with_path(backbone)
    kernels = {trees.path_of(path): leaf for path, leaf in found}
    added = {child(layer, "base.kernel"): x for layer, x in whole(residual).items()}
    for name in added:
        if name not in kernels:
            beside = sorted(
                n for n in kernels if n.startswith(name.removesuffix("kernel"))
            )
            raise ValueError(
                f"this rule adds to the frozen kernel {name!r}, which the "
                f"backbone does not have; it has {beside}. Quantised layers "
                "cannot take it in: load the model with frozen='dense'"
            )
    leaves = [
        (x + added[name]).astype(x.dtype) if name in added else x
        for name, x in kernels.items()
    ]
    return jax.tree.unflatten(structure, leaves)


def room(most_clients: int | None, setting: Setting) -> int:
    """Clients whose factors the stack has room for."""
    return setting.cohort_size if most_clients is None else most_clients


def model_with_residual(server: Any, last: Any, backbone: Tree) -> tuple[Tree, Tree]:
    """`Algorithm.model` of FedEx-LoRA and FLoRA.

    The same for all, beside kernels that have taken the residual in.
    """
    return server.delta, merged(backbone, server.residual)
