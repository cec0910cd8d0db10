"""A search for the text behind a gradient, among embeddings and then among tokens.

Balunovic, Dimitrov, Jovanovic, Vechev, 2022, "LAMP: Extracting Text from Gradients with
Language Model Priors", arXiv 2202.08827. Steps of DLG on the embeddings alternate with
moves on the tokens next to them (two change places, one goes elsewhere, the end comes
first), of which the best is taken if it explains the gradient better.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks
from fedjax_fm.evaluation.inversion import DISTANCES, nearest_tokens
from fedjax_fm.types import Tree


class TextSearch(NamedTuple):
    """How hard is searched.

    Attributes:
      steps: on the embeddings, of each start.
      starts: embeddings drawn at random, of which the nearest in the end is kept.
      learning_rate: of Adam, which falls to zero by a cosine.
      every: steps between two rounds of moves.
      moves: that are tried in a round.
      distance: of gradients: "squared", "cosine" or "tag".
      norm_weight: of (mean norm of embeddings - that of the table)^2.
      prior_weight: of -log p of the tokens, where a move is judged.
    """

    steps: int = 600
    starts: int = 4
    learning_rate: float = 0.05
    every: int = 100
    moves: int = 40
    distance: str = "cosine"
    norm_weight: float = 0.1
    prior_weight: float = 0.0

    def checked(self) -> "TextSearch":
        """Itself, after a check of its values.

        Raises:
          TypeError, ValueError: names the value that makes no sense.
        """
        for name in ("steps", "starts", "every"):
            checks.whole(name, getattr(self, name), least=1)
        checks.whole("moves", self.moves, least=0)
        checks.real("learning_rate", self.learning_rate, above=0)
        checks.choice("distance", self.distance, tuple(DISTANCES))
        for name in ("norm_weight", "prior_weight"):
            checks.real(name, getattr(self, name), least=0)
        return self


class Recovered(NamedTuple):
    """What the search found.

    Attributes:
      tokens: i64[T].
      distance: of their gradient from the one that was seen; near 0 if they explain it.
    """

    tokens: np.ndarray
    distance: float


def search_text(
    gradient_of: Callable[[jax.Array], Tree],
    observed: Tree,
    table: Any,
    length: int,
    *,
    how: TextSearch | None = None,
    prior: Callable[[np.ndarray], float] | None = None,
    seed: int = 0,
) -> Recovered:
    """Searches for a text whose gradient is the one that was seen.

    Args:
      gradient_of: `embeddings f32[T, d] -> gradient`, what the client would have sent.
      observed: what was seen, like the result of `gradient_of`.
      table: f32[V, d], embeddings of all tokens.
      length: T, of the text.
      how: how hard is searched; None: `TextSearch()`.
      prior: `tokens i64[T] -> log p` of a language model, per token; None for none.
      seed: of starts and moves.

    Returns:
      Tokens, and how well they explain the gradient. Where an upload says nothing of
      its text, they are as good as random.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Balunovic et al. 2022, arXiv 2202.08827, algorithm 1; Zhu, Liu, Han 2019, arXiv
      1906.08935.

    Example:
      >>> table = jnp.eye(4)
      >>> found = search_text(
      ...     lambda x: x.cumsum(axis=0), table[jnp.array([2, 0])].cumsum(axis=0), table, 2
      ... )
      >>> found.tokens.tolist()
      [2, 0]
    """
    chosen = (TextSearch() if how is None else how).checked()
    checks.whole("length", length, least=1)
    checks.whole("seed", seed, least=0)
    rows = jnp.asarray(table, jnp.float32)
    search = _Searcher(gradient_of, observed, rows, chosen, prior)
    found = [search.from_start(length, [seed, k]) for k in range(chosen.starts)]
    return min(found, key=_distance)


def _distance(found: Recovered) -> float:
    return found.distance


class _Searcher:
    """One search: compiled functions of the embeddings, and the moves between them."""

    def __init__(
        self,
        gradient_of: Callable[[jax.Array], Tree],
        observed: Tree,
        table: jax.Array,
        how: TextSearch,
        prior: Callable[[np.ndarray], float] | None,
    ):
        self.table, self.how, self.prior = table, how, prior
        self.rows = np.asarray(table, np.float64)
        measured, seen = DISTANCES[how.distance], jax.tree.leaves(observed)
        size = float(np.linalg.norm(self.rows, axis=1).mean())

        def distance(embedded):
            return measured(jax.tree.leaves(gradient_of(embedded)), seen)

        def objective(embedded):
            squared = jnp.sum(embedded**2, axis=-1)
            mean = jnp.mean(jnp.sqrt(squared + 1e-12))
            return distance(embedded) + how.norm_weight * (mean - size) ** 2

        schedule = optax.cosine_decay_schedule(how.learning_rate, how.steps)
        self.optimizer = optimizer = optax.adam(schedule)

        def step(carry, _):
            embedded, moments = carry
            gradient = jax.grad(objective)(embedded)
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(embedded, updates), moments), None

        def some(embedded, moments):
            start = (embedded, moments)
            return jax.lax.scan(step, start, length=min(how.every, how.steps))[0]

        self.walk, self.distance = jax.jit(some), jax.jit(distance)

    def from_start(self, length: int, seed: list[int]) -> Recovered:
        """From embeddings of random size and direction to tokens."""
        random = np.random.default_rng(seed)
        scale = np.sqrt(np.mean(self.rows**2))
        start = scale * random.normal(size=(length, self.rows.shape[1]))
        embedded = jnp.asarray(start, jnp.float32)
        moments = self.optimizer.init(embedded)
        for _ in range(max(1, self.how.steps // self.how.every)):
            embedded, moments = self.walk(embedded, moments)
            embedded = self._moved(embedded, random)
        tokens = nearest_tokens(embedded, self.rows)
        return Recovered(tokens, float(self.distance(self.table[tokens])))

    def _moved(self, embedded: jax.Array, random: np.random.Generator) -> jax.Array:
        """The embeddings in the best order that was tried, by the tokens next to them."""
        length = embedded.shape[0]
        best_order, best = np.arange(length), self._judged(embedded, np.arange(length))
        if length < 2:
            return embedded
        for _ in range(self.how.moves):
            order = _move(length, random)
            score = self._judged(embedded, order)
            if score < best:
                best_order, best = order, score
        return embedded[best_order]

    def _judged(self, embedded: jax.Array, order: np.ndarray) -> float:
        """How badly the tokens in that order explain the gradient, and read."""
        tokens = nearest_tokens(embedded[order], self.rows)
        score = float(self.distance(self.table[tokens]))
        if self.prior is None or self.how.prior_weight == 0:
            return score
        return score - self.how.prior_weight * self.prior(tokens)


def _move(length: int, random: np.random.Generator) -> np.ndarray:
    """Another order: two change places, one goes elsewhere, or the end comes first."""
    order = np.arange(length)
    kind, (i, j) = random.integers(3), random.permutation(length)[:2]
    if kind == 0:
        order[[i, j]] = order[[j, i]]
        return order
    if kind == 1:
        return np.insert(np.delete(order, i), j, i)
    return np.roll(order, int(i))
