"""Gaussian noise for sums over rounds: independent, by a binary tree, or by a banded matrix.

All are matrix mechanisms (Denisov et al. 2022, arXiv 2202.08312): with prefix sums A =
B C of the rounds' updates x, the release B (C x + z) = A (x + C^-1 z) has the
sensitivity of the strategy C, and round t adds the increment (C^-1 z)_t to its update.
C = I is DP-FedAvg's independent noise, whose prefix sums add up to t variances.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.types import Tree


class Noise(NamedTuple):
    """Noise increments with z ~ N(0, I); whoever adds them scales by sigma times the clip norm.

    `init(tree, key) -> state`, `draw(state) -> (increment like tree, f32, state)`; the
    state is part of the server's, so that a resumed run goes on with the same noise.
    `strategy(rounds) -> f64[rows, rounds]` is C, for its sensitivity; row i is released
    in the round of its last entry that is not zero.

    No two draws of a run share a key: every z is named by round (or node) and leaf
      under the key that `init` is given.
    The noise is as good as its key: who knows the seed of a run can take it off, and
    two runs of one seed share it.
    """

    init: Callable[[Tree, jax.Array], Any]
    draw: Callable[[Any], tuple[Tree, Any]]
    strategy: Callable[[int], np.ndarray]
    is_independent: bool = False


def _normal(key: jax.Array, like: Tree) -> Tree:
    leaves, structure = jax.tree.flatten(like)
    # jax.random, not a fast hash: the noise of a privacy guarantee must not be predictable.
    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    drawn = [
        jax.random.normal(key, x.shape, jnp.float32)
        for key, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


class IndependentState(NamedTuple):
    """Counts draws."""

    key: jax.Array
    round: jax.Array  # i32[]
    like: Tree  # zeros of the tree's shapes


def independent() -> Noise:
    """Fresh noise every round, C = I (DP-FedAvg, McMahan et al. 2018, arXiv 1710.06963)."""

    def init(tree, key):
        return IndependentState(key, jnp.int32(0), _zeros(tree))

    def draw(state):
        noise = _normal(jax.random.fold_in(state.key, state.round), state.like)
        return noise, state._replace(round=state.round + 1)

    return Noise(init=init, draw=draw, strategy=np.eye, is_independent=True)


class TreeState(NamedTuple):
    """Where the tree stands."""

    key: jax.Array
    round: jax.Array  # i32[], updates so far
    prefix: Tree  # noise of the current tree's prefix sum


def binary_tree(rounds_per_tree: int, *, completion: bool = False) -> Noise:
    """Every node of a binary tree over the rounds has its own noise.

    A prefix sum has that of the nodes that cover it.

    The prefix sum over t rounds has variance popcount(t), at most log2 of the rounds. A
    node's noise is drawn from its name whenever it is needed, so the state is one tree
    of delta's size. After `rounds_per_tree` rounds, n, a new tree begins; the noise of
    the last prefix of the one before stays in what is there.

    Args:
      rounds_per_tree: n, at least 1.
      completion: whether a tree is completed when it ends, as if rounds without data
        followed up to the next power of two: its last prefix has the noise of the root
        alone. Of each tree stays

          without: variance popcount(n); a client pays for floor(log2 n) + 1 nodes at most
          with:    variance 1;           a client pays for ceil(log2 n) + 1 nodes at most

        A power of two is complete by itself. For n = 7 the noise that stays is a third,
        for the price of 4 nodes instead of 3.

    Formal guarantees:
      `strategy` has a row for each node that is complete, also for right children,
      which no prefix reads: what is accounted for is never less than what is released.
      Nodes that are not complete are not released.

    References:
      Kairouz et al., Practical and Private (Deep) Learning without Sampling or
      Shuffling, 2021, arXiv 2103.00039 (DP-FTRL, online tree aggregation without
      Honaker's refinement); restarts and completion: ibid., appendix D. The authors'
      code completes every tree but the last; here the last one, too, if its rounds are
      all done.
    """
    checks.whole("rounds_per_tree", rounds_per_tree, least=1)
    checks.flag("completion", completion)
    n_levels = rounds_per_tree.bit_length()
    root = (
        rounds_per_tree - 1
    ).bit_length()  # its level; in a tree that needs no completion the last of n_levels
    completes = completion and root == n_levels

    def init(tree, key):
        return TreeState(key, jnp.int32(0), _zeros(tree))

    def node(key, level, index, like):
        return _normal(jax.random.fold_in(jax.random.fold_in(key, level), index), like)

    def prefix_of(key, n, like):
        """Noise of the nodes that cover the first n rounds: level l where bit l of n is set."""

        def with_node(level, total):
            return jax.tree.map(
                jnp.add, total, node(key, level, (n >> level) - 1, like)
            )

        def add(level, total):
            return jax.lax.cond(
                (n >> level) & 1 == 1,
                with_node,
                lambda level, total: total,
                level,
                total,
            )

        return jax.lax.fori_loop(0, n_levels, add, _zeros(like))

    def draw(state):
        number, place = state.round // rounds_per_tree, state.round % rounds_per_tree
        key = jax.random.fold_in(state.key, number)
        if completes:
            prefix = jax.lax.cond(
                place + 1 == rounds_per_tree,
                lambda: node(key, root, 0, state.prefix),
                lambda: prefix_of(key, place + 1, state.prefix),
            )
        else:
            prefix = prefix_of(key, place + 1, state.prefix)
        before = jax.tree.map(lambda x: jnp.where(place == 0, 0, x), state.prefix)
        increment = jax.tree.map(jnp.subtract, prefix, before)
        return increment, TreeState(key=state.key, round=state.round + 1, prefix=prefix)

    def strategy(rounds: int) -> np.ndarray:
        """One row a node; nodes that are not complete have not been released."""
        spans = []
        for start in range(0, rounds, rounds_per_tree):
            end = min(start + rounds_per_tree, rounds)
            for width in (2**level for level in range(n_levels)):
                spans += [
                    (first, first + width)
                    for first in range(start, end - width + 1, width)
                ]
            if completes and end - start == rounds_per_tree:
                spans.append((start, end))
        rows = np.zeros((len(spans), rounds))
        for row, (first, last) in zip(rows, spans, strict=True):
            row[first:last] = 1
        return rows

    return Noise(init=init, draw=draw, strategy=strategy)


class BandedState(NamedTuple):
    """The last increments."""

    key: jax.Array
    round: jax.Array  # i32[]
    recent: Tree  # leaves [bands - 1, ...], newest first


def banded(coefficients: Sequence[float] | np.ndarray) -> Noise:
    """A banded Toeplitz strategy.

    C[t, s] = coefficients[t - s], so the increment is y_t = (z_t - sum_j c_j y_{t-j}) /
    c_0.

    Memory: bands - 1 trees of delta's size. With no more bands than rounds between
    participations a client's own contributions do not overlap, and the sensitivity is
    exact (`sensitivity`).

    References:
      Choquette-Choo et al., (Amplified) Banded Matrix Factorization, 2023, arXiv 2306.08153.
    """
    c = _coefficients(coefficients)

    def init(tree, key):
        recent = jax.tree.map(
            lambda x: jnp.zeros((len(c) - 1, *x.shape), jnp.float32), tree
        )
        return BandedState(key, jnp.int32(0), recent)

    def draw(state):
        like = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], jnp.float32), state.recent)
        z = _normal(jax.random.fold_in(state.key, state.round), like)
        later = jnp.asarray(c[1:], jnp.float32)

        def solve(z, recent):
            # In full precision on accelerators too: what is not C^-1 z is not what was
            # accounted for.
            carried = jnp.tensordot(later, recent, axes=1, precision="highest")
            return (z - carried) / jnp.float32(c[0])

        y = jax.tree.map(solve, z, state.recent)
        recent = jax.tree.map(
            lambda y, old: jnp.concatenate([y[None], old])[: len(c) - 1],
            y,
            state.recent,
        )
        return y, BandedState(state.key, state.round + 1, recent)

    def strategy(rounds: int) -> np.ndarray:
        t, s = np.indices((rounds, rounds))
        within = (t >= s) & (t - s < len(c))
        return np.where(within, c[np.clip(t - s, 0, len(c) - 1)], 0.0)

    return Noise(init=init, draw=draw, strategy=strategy)


def _coefficients(coefficients: Any) -> np.ndarray:
    """f64[bands], or ValueError naming them."""
    try:
        c = np.array(
            [
                checks.real(f"coefficients[{i}]", value)
                for i, value in enumerate(coefficients)
            ],
            np.float64,
        )
    except (TypeError, ValueError):
        c = np.zeros(0)
    if not len(c) or c[0] == 0:
        raise ValueError(
            "expected finite coefficients [c_0, c_1, ...] with c_0 != 0, got "
            f"coefficients={coefficients!r}"
        )
    return c


def square_root_coefficients(bands: int) -> np.ndarray:
    """f64[bands]: of the banded square root of the prefix-sum matrix, c_j = binom(2j, j) / 4^j.

    Without truncation C C = A, the factorisation with the smallest known error for one
    participation (Fichtenberger et al. 2022, arXiv 2202.11205); cut to `bands`: Kalinin
    and Lampert 2024, arXiv 2405.13763.
    """
    checks.whole("bands", bands, least=1)
    steps = np.arange(1, bands)
    return np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])


def _zeros(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), tree)
