"""What FedEx-LoRA, FLoRA and FRLoRA add to the frozen layers, and the rule that they are.

The server keeps the whole sum and, apart from it, what the last round added. On the
bill, a client of the last round is sent the new part only; one that missed a round is
sent the whole sum, densely; one that takes part for the first time gets it with the
frozen model, which is in no rule's bill.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.lora_rules.cohort import CohortFactors, all_of_cohort
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    along_rows,
    as_arrays,
    child,
    cut_pairs,
    join,
    product,
    refuse_magnitudes,
    split,
)
from fedjax_fm.algorithms.lora_rules.rule import Rule, client_of, reduce_of, this_round
from fedjax_fm.algorithms.lora_rules.training import (
    ClientFactors,
    FactorTraining,
    no_round_yet,
)
from fedjax_fm.types import (
    Algorithm,
    Exchange,
    Reduce,
    Rows,
    Tree,
    Unbilled,
)

# Of a layer: rows whose product is added to the kernel, and bool[rows], which are real.
Added = dict[str, tuple[Pair, jax.Array]]


class Residual(NamedTuple):
    """What was added to the kernels, by the dotted path of the layer, scaling included."""

    total: dict[str, jax.Array]  # [..., in, out], without the newest part
    newest: dict[str, Any]  # Pair of Rows [rows, ...], or [..., in, out]
    round: jax.Array  # i32[], rounds that are done


class ResidualState(NamedTuple):
    """Server state; `simulator.model` adds the residual to the kernels."""

    delta: Tree  # the factors, and the other trained leaves
    residual: Residual  # what was added to the frozen kernels


def residual_rule(
    training: FactorTraining,
    combine: Callable[[CohortFactors, Factors, jax.Array], tuple[Factors, Added]],
    height: Callable[[Pair, int], int | None],
    *,
    most_clients: int | None,
    starts_anew: bool = False,
    reduce: Reduce | None = None,
) -> Algorithm:
    """The algorithm of a rule that adds to the frozen kernels after every round.

    Args:
      training: how clients train.
      combine: `(factors of the cohort, old factors, key) -> (new factors, what is added
        to the kernels)`.
      height: `(pair, number of clients) -> int`, the most rows that a round adds; None
        where it adds [in, out].
      most_clients: of a round; None: the cohort size.
      starts_anew: whether clients draw the factors from a shared seed; they are not
        billed then.
      reduce: whose value is `CohortFactors`; None: `all_of_cohort()`.

    Returns:
      An algorithm; the client state is the last round in which the client took part.
    """
    rule = Rule(sent="ab", reduce=reduce or all_of_cohort())
    train = client_of(rule, training, this_round)

    def init(delta, key, setting):
        refuse_magnitudes(delta)
        training.check_ranks(delta, setting)
        n_clients = setting.cohort_size if most_clients is None else most_clients
        pairs = split(delta).pairs
        heights = {layer: height(pair, n_clients) for layer, pair in pairs.items()}
        return ResidualState(delta, no_residual(pairs, heights))

    def broadcast(state):
        return split(state.delta), Unbilled(state.residual)

    def address(message, last_round, client):
        factors, residual = message
        trained = cut_pairs(factors, training.rows(client))
        missing = to_fetch(residual, last_round)
        if starts_anew:
            return ClientFactors(Unbilled(trained), to_fetch=(factors.rest, missing))
        return ClientFactors(trained, to_fetch=missing)

    def client(backbone, message):
        return train(add_to_kernels(backbone, message[1]), message)

    def server(state, aggregate, key):
        factors, added = combine(aggregate.value, split(state.delta), key)
        residual = after_round(state.residual, added)
        return ResidualState(join(factors), residual), {}

    def model(server, last_round, backbone):
        return server.delta, add_to_kernels(backbone, server.residual)

    exchange = Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=reduce_of(rule, training.layout),
        batches=training.local.batches,
        address=address,
    )
    return Algorithm(
        init=init, exchanges=(exchange,), client_init=no_round_yet, model=model
    )


def check_arguments(scaling: float, most_clients: int | None) -> None:
    """Refuses arguments of these rules that make no sense.

    Args:
      scaling: of the LoRA layers, above 0.
      most_clients: at least 1; None: the cohort size.

    Raises:
      TypeError, ValueError: one of them is of another kind or out of bounds.
    """
    checks.real("scaling", scaling, above=0)
    if most_clients is not None:
        checks.whole("most_clients", most_clients, least=1)


# How many rows


def stack_height(ranks: np.ndarray | None, pair: Pair, n_clients: int) -> int:
    """The most rows that the stacked factors of a cohort may have.

    Args:
      ranks: i32[N]; None: all have the rank of the pair.
      pair: of the delta, [r, ...].
      n_clients: in the cohort, whichever they are.

    Returns:
      The sum of the largest ranks.
    """
    rank = pair.a.shape[0]
    if ranks is None:
        return rank * n_clients
    largest = np.sort(np.minimum(ranks, rank))[-n_clients:]
    return int(largest.sum())


def is_below_dense(pair: Pair, height: int) -> bool:
    """Whether factors are fewer numbers than their product.

    Args:
      pair: of the delta, [r, ..., in or out].
      height: rows of the factors in question.

    Returns:
      height (in + out) < in out.
    """
    n_in, n_out = pair.a.shape[-1], pair.b.shape[-1]
    return height * (n_in + n_out) < n_in * n_out


# The residual


def no_residual(pairs: dict[str, Pair], heights: Mapping[str, int | None]) -> Residual:
    """The residual before the first round.

    Args:
      pairs: of the delta.
      heights: by layer, the most rows that a round adds; None: [in, out].

    Returns:
      Zeros.
    """
    none = jnp.int32(0)
    products = {layer: product(pair) for layer, pair in pairs.items()}
    zeros = jax.tree.map(jnp.zeros_like, products)

    def newest(layer: str, height: int | None) -> Any:
        def no_rows(x: jax.Array) -> Rows:
            return Rows(jnp.zeros((height, *x.shape[1:]), x.dtype), none)

        return zeros[layer] if height is None else pairs[layer].map(no_rows)

    empty = {layer: newest(layer, height) for layer, height in heights.items()}
    return Residual(zeros, empty, none)


def after_round(residual: Residual, added: Added) -> Residual:
    """The residual after one more round.

    Args:
      residual: before it.
      added: by layer, what the round adds.

    Returns:
      A residual of the same shapes; rows are multiplied out where its newest part is
      [in, out].
    """
    newest = {}
    for layer, (pair, is_real) in added.items():
        before = residual.newest[layer]
        if isinstance(before, Pair):
            newest[layer] = packed(pair, is_real, len(before.a.values))
        else:
            newest[layer] = product(pair)
    return Residual(all_added(residual), newest, residual.round + 1)


def all_added(residual: Residual) -> dict[str, jax.Array]:
    """{layer: [..., in, out]}, the newest part included."""

    def dense(part: Any) -> jax.Array:
        part = as_arrays(part)
        return product(part) if isinstance(part, Pair) else part

    newest = residual.newest
    return {layer: x + dense(newest[layer]) for layer, x in residual.total.items()}


def packed(pair: Pair, is_real: jax.Array, height: int) -> Pair:
    """The real rows in front, as `Rows` of a fixed height.

    More of them than fit make NaN, which stops the run: no row is dropped silently.

    Args:
      pair: [rows, ...].
      is_real: bool[rows].
      height: of the result.

    Returns:
      A pair of `Rows` [height, ...].
    """
    count = jnp.sum(is_real, dtype=jnp.int32)
    order = jnp.argsort(~is_real, stable=True)[:height]

    def pack(x: jax.Array) -> Rows:
        real = jnp.where(along_rows(is_real[order], x), x[order], 0)
        values = jnp.where(count > height, jnp.nan, real)
        missing = [(0, height - len(order)), *[(0, 0)] * (x.ndim - 1)]
        padded = jnp.pad(values, missing)
        return Rows(padded, jnp.minimum(count, height))

    return pair.map(pack)


def to_fetch(residual: Residual, last_round: jax.Array) -> tuple:
    """What a client does not have yet of the residual, for the bill.

    Args:
      residual: of the server.
      last_round: i32[], in which the client took part; -1: none.

    Returns:
      (newest part, all that was added), by layer, as `Rows`; at most one of them has
      rows.
    """
    took_part = last_round >= 0
    is_recent = took_part & (last_round == residual.round - 1)

    def all_or_nothing(dense: jax.Array, condition: jax.Array) -> Rows:
        rows = jnp.moveaxis(dense, -2, 0)
        return Rows(rows, jnp.where(condition, rows.shape[0], 0))

    def if_recent(rows: Rows) -> Rows:
        return Rows(rows.values, jnp.where(is_recent, rows.count, 0))

    def newest_part(part: Any) -> Any:
        is_pair = isinstance(part, Pair)
        return part.map(if_recent) if is_pair else all_or_nothing(part, is_recent)

    newest = {layer: newest_part(part) for layer, part in residual.newest.items()}
    whole = {
        layer: all_or_nothing(x, took_part & ~is_recent)
        for layer, x in all_added(residual).items()
    }
    return newest, whole


def add_to_kernels(backbone: Tree, residual: Residual) -> Tree:
    """The backbone with the residual in its kernels.

    Args:
      backbone: has the leaves `<layer>.base.kernel` [..., in, out].
      residual: what is added to them.

    Returns:
      A tree like the backbone, of the same dtypes.

    Raises:
      ValueError: a layer has no dense kernel, as with 4-bit blocks.
    """
    found, structure = jax.tree.flatten_with_path(backbone)
    leaves = {trees.path_of(path): leaf for path, leaf in found}
    for layer, added in all_added(residual).items():
        name = child(layer, "base.kernel")
        if name not in leaves:
            beside = name.removesuffix("kernel")
            raise ValueError(
                f"this rule adds to the frozen kernel {name!r}, which the "
                "backbone does not have; it has "
                f"{sorted(n for n in leaves if n.startswith(beside))}. Quantised layers "
                "cannot take it in: load the model with frozen='dense'"
            )
        leaves[name] = (leaves[name] + added).astype(leaves[name].dtype)
    return jax.tree.unflatten(structure, leaves.values())
