"""Gaussian noise for sums over rounds: independent, by a binary tree, or banded.

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
    """Noise that the server adds round by round, z ~ N(0, I) through a strategy C.

    The method scales what it draws by its multiplier times the clip norm.
    No two draws of a run share a key: every z is named by round (or node) and leaf
    under the key that `init` is given. The noise is as good as its key: anybody who
    knows the seed of a run can take it off, and two runs of one seed share it.

    Attributes:
      init: `(tree, key) -> state`; the state is part of the server's, so that a resumed
        run goes on with the same noise.
      draw: `state -> (increment like tree, f32, state)`.
      strategy: `rounds -> f64[rows, rounds]`, C, for its sensitivity; row i is released
        in the round of its last entry that is not zero.
      is_independent: whether C = I.
    """

    init: Callable[[Tree, jax.Array], Any]
    draw: Callable[[Any], tuple[Tree, Any]]
    strategy: Callable[[int], np.ndarray]
    is_independent: bool = False


def _normal(key: jax.Array, like: Tree) -> Tree:
    """Standard normal leaves of the shapes of `like`, in f32."""
    leaves, structure = jax.tree.flatten(like)
    # jax.random, not a fast hash: the noise of a guarantee must not be predictable.
    keys = [jax.random.fold_in(key, i) for i, _ in enumerate(leaves)]
    drawn = [
        jax.random.normal(key, x.shape, jnp.float32)
        for key, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


class IndependentState(NamedTuple):
    """State of `independent`: counts draws."""

    key: jax.Array
    round: jax.Array  # i32[], draws so far
    like: Tree  # zeros of the tree's shapes


def independent() -> Noise:
    """Fresh noise every round, C = I, as in DP-FedAvg.

    Returns:
      A `Noise` with one key and a counter as state.

    References:
      McMahan et al., Learning differentially private recurrent language models, 2018,
      arXiv 1710.06963, algorithm 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import privacy
      >>> noise = privacy.independent()
      >>> state = noise.init({"w": jnp.zeros(3)}, jax.random.key(0))
      >>> increment, state = noise.draw(state)
      >>> increment["w"].shape, int(state.round)
      ((3,), 1)
      >>> noise.strategy(2).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """

    def init(tree, key):
        like = _zeros(tree)
        return IndependentState(key, jnp.int32(0), like)

    def draw(state):
        noise = _normal(jax.random.fold_in(state.key, state.round), state.like)
        return noise, state._replace(round=state.round + 1)

    return Noise(init=init, draw=draw, strategy=np.eye, is_independent=True)


class TreeState(NamedTuple):
    """State of `binary_tree`: where the tree stands."""

    key: jax.Array
    round: jax.Array  # i32[], updates so far
    prefix: Tree  # noise of the current tree's prefix sum


def binary_tree(rounds_per_tree: int, *, completion: bool = False) -> Noise:
    """Noise of a binary tree over the rounds, one draw a node (DP-FTRL).

    A prefix sum has the noise of the nodes that cover it: over t rounds the variance is
    popcount(t), at most log2 of the rounds. A node's noise is drawn from its name
    whenever it is needed, so the state is one tree of delta's size. After
    `rounds_per_tree` rounds, n, a new tree begins; the noise of the last prefix of the
    one before stays in what is there.

    Args:
      rounds_per_tree: n, at least 1.
      completion: whether a tree is completed when it ends, as if rounds without data
        followed up to the next power of two: its last prefix has the noise of the root
        alone. Of each tree stays, without completion, the variance popcount(n), and a
        client pays for at most floor(log2 n) + 1 nodes; with completion the variance 1,
        and a client pays for at most ceil(log2 n) + 1 nodes. A power of two is complete
        by itself. For n = 7 the noise that stays is a third, for the price of 4 nodes
        instead of 3.

    Returns:
      A `Noise` that needs a sampler which limits participation, such as
      `samplers.spaced`.

    Raises:
      ValueError: `rounds_per_tree` is below 1.

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

    Example:
      >>> from fedjax_fm import privacy
      >>> noise = privacy.binary_tree(2)
      >>> noise.strategy(2).tolist()  # a node for each round, and the root
      [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    checks.whole("rounds_per_tree", rounds_per_tree, least=1)
    checks.flag("completion", completion)
    n_levels = rounds_per_tree.bit_length()
    # Level of the root; in a tree that needs no completion the last of n_levels.
    root = (rounds_per_tree - 1).bit_length()
    completes = completion and root == n_levels

    def init(tree, key):
        prefix = _zeros(tree)
        return TreeState(key, jnp.int32(0), prefix)

    def draw(state):
        number, place = state.round // rounds_per_tree, state.round % rounds_per_tree
        key = jax.random.fold_in(state.key, number)
        if completes:
            prefix = jax.lax.cond(
                place + 1 == rounds_per_tree,
                lambda: _node(key, root, 0, state.prefix),
                lambda: _prefix(key, place + 1, n_levels, state.prefix),
            )
        else:
            prefix = _prefix(key, place + 1, n_levels, state.prefix)
        before = jax.tree.map(lambda x: jnp.where(place == 0, 0, x), state.prefix)
        increment = jax.tree.map(jnp.subtract, prefix, before)
        return increment, TreeState(key=state.key, round=state.round + 1, prefix=prefix)

    def strategy(rounds: int) -> np.ndarray:
        """One row a node; nodes that are not complete have not been released."""
        spans = []
        for start in range(0, rounds, rounds_per_tree):
            end = min(start + rounds_per_tree, rounds)
            for width in (2**level for level in range(n_levels)):
                firsts = range(start, end - width + 1, width)
                spans += [(first, first + width) for first in firsts]
            if completes and end - start == rounds_per_tree:
                spans.append((start, end))
        rows = np.zeros((len(spans), rounds))
        for row, (first, last) in zip(rows, spans, strict=True):
            row[first:last] = 1
        return rows

    return Noise(init=init, draw=draw, strategy=strategy)


def _node(key: jax.Array, level: jax.Array | int, index, like: Tree) -> Tree:
    """Noise of a node of a binary tree, from its name."""
    of_level = jax.random.fold_in(key, level)
    return _normal(jax.random.fold_in(of_level, index), like)


def _prefix(key: jax.Array, n: jax.Array, n_levels: int, like: Tree) -> Tree:
    """Noise of the nodes that cover the first n rounds.

    There is one of level l where bit l of n is set.
    """

    def add(level, total):
        def with_node(total):
            noise = _node(key, level, (n >> level) - 1, like)
            return jax.tree.map(jnp.add, total, noise)

        def without(total):
            return total

        return jax.lax.cond((n >> level) & 1 == 1, with_node, without, total)

    return jax.lax.fori_loop(0, n_levels, add, _zeros(like))


class BandedState(NamedTuple):
    """State of `banded`: the last increments."""

    key: jax.Array
    round: jax.Array  # i32[], draws so far
    recent: Tree  # leaves [bands - 1, ...], newest first


def banded(coefficients: Sequence[float] | np.ndarray) -> Noise:
    """Noise of a banded Toeplitz strategy, C[t, s] = coefficients[t - s].

        y_t = (z_t - sum_{j >= 1} c_j y_{t-j}) / c_0

    is the increment of round t. Memory: bands - 1 trees of delta's size. With no more
    bands than rounds between participations a client's own contributions do not
    overlap, and the sensitivity is exact (`sensitivity`).

    Args:
      coefficients: c_0, c_1, ..., one a band, finite and c_0 not 0; see
        `square_root_coefficients`.

    Returns:
      A `Noise` that needs a sampler which limits participation, such as
      `samplers.spaced`.

    Raises:
      ValueError: no such coefficients.

    References:
      Choquette-Choo et al., (Amplified) Banded Matrix Factorization, 2023, arXiv
      2306.08153.

    Example:
      >>> from fedjax_fm import privacy
      >>> noise = privacy.banded([1.0, 0.5])
      >>> noise.strategy(3).tolist()
      [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.5, 1.0]]
    """
    c = _coefficients(coefficients)

    n_recent = len(c) - 1

    def init(tree, key):
        def nothing_yet(x):
            return jnp.zeros((n_recent, *x.shape), jnp.float32)

        return BandedState(key, jnp.int32(0), jax.tree.map(nothing_yet, tree))

    def draw(state):
        like = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], jnp.float32), state.recent)
        z = _normal(jax.random.fold_in(state.key, state.round), like)
        later = jnp.asarray(c[1:], jnp.float32)

        def solve(z, recent):
            # In full precision on accelerators too: what is not C^-1 z is not what was
            # accounted for.
            carried = jnp.tensordot(later, recent, axes=1, precision="highest")
            return (z - carried) / jnp.float32(c[0])

        def newest_first(y, old):
            return jnp.concatenate([y[None], old])[:n_recent]

        y = jax.tree.map(solve, z, state.recent)
        recent = jax.tree.map(newest_first, y, state.recent)
        return y, BandedState(state.key, state.round + 1, recent)

    def strategy(rounds: int) -> np.ndarray:
        t, s = np.indices((rounds, rounds))
        within = (t >= s) & (t - s < len(c))
        band = np.clip(t - s, 0, n_recent)
        return np.where(within, c[band], 0.0)

    return Noise(init=init, draw=draw, strategy=strategy)


def _coefficients(coefficients: Any) -> np.ndarray:
    """f64[bands], or ValueError naming them."""
    try:
        numbers = [
            checks.real(f"coefficients[{i}]", value)
            for i, value in enumerate(coefficients)
        ]
        c = np.array(numbers, np.float64)
    except (TypeError, ValueError):
        c = np.zeros(0)
    if not len(c) or c[0] == 0:
        raise ValueError(
            "expected finite coefficients [c_0, c_1, ...] with c_0 != 0, got "
            f"coefficients={coefficients!r}"
        )
    return c


def square_root_coefficients(bands: int) -> np.ndarray:
    """f64[bands]: c_j = binom(2j, j) / 4^j, the banded square root of prefix sums.

    Without truncation C C = A, the factorisation with the smallest known error for one
    participation.

    Args:
      bands: how many coefficients, at least 1.

    References:
      Fichtenberger et al. 2022, arXiv 2202.11205; cut to `bands`: Kalinin and Lampert
      2024, arXiv 2405.13763.

    Example:
      >>> from fedjax_fm import privacy
      >>> privacy.square_root_coefficients(3).tolist()
      [1.0, 0.5, 0.375]
    """
    checks.whole("bands", bands, least=1)
    steps = np.arange(1, bands)
    return np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])


def _zeros(tree: Tree) -> Tree:
    """A tree of zeros of the same shapes, in f32."""

    def zeros(x):
        shape = jnp.shape(x)
        return jnp.zeros(shape, jnp.float32)

    return jax.tree.map(zeros, tree)
