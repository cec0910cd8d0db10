"""Noise that a client adds itself: what is checked, drawn and said of its privacy."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.privacy.examples import LocalAccounting, local_spent
from fedjax_fm.types import ClientData, Privacy, Task, Tree


class LocalNoise(NamedTuple):
    """Noise on a mean of clipped gradients.

    Attributes:
      multiplier: z, its deviation in units of G / m; 0 for none.
      clip_norm: G.
      accounting: what z is accounted for; None for nothing.
      epsilons: after each round, of accounted noise.
      privacy: what a simulator prints and holds the method to; None without noise.
    """

    multiplier: float
    clip_norm: float
    accounting: LocalAccounting | None
    epsilons: tuple[float, ...]
    privacy: Privacy | None

    def added(
        self, estimate: Tree, mask: jax.Array, data: ClientData, key: jax.Array
    ) -> Tree:
        """The estimate with the noise.

        Args:
          estimate: leaves f32[...].
          mask: bool[B], the examples that were drawn.
          data: the client's; one that is smaller than accounted for gets NaN, which
            stops the run.
          key: the client's.
        """
        if self.multiplier == 0:
            return estimate
        n_drawn = jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
        deviation = self.multiplier * self.clip_norm / n_drawn
        if self.accounting is not None:
            n = data.n_examples
            is_too_small = (n > 0) & (n < self.accounting.n_examples)
            deviation = jnp.where(is_too_small, jnp.nan, deviation)
        leaves, structure = jax.tree.flatten(estimate)
        keys = jax.random.split(stream(key, Stream.LOCAL_NOISE), len(leaves))
        pairs = zip(leaves, keys, strict=True)
        noisy = [x + deviation * jax.random.normal(k, x.shape) for x, k in pairs]
        return jax.tree.unflatten(structure, noisy)


def local_noise(
    multiplier: float,
    clip_norm: float,
    accounting: LocalAccounting | None,
    *,
    batch_size: int,
    estimator: str,
    passes: int | None = None,
) -> LocalNoise:
    """Checks the noise, and accounts for it.

    Args:
      multiplier: z, at least 0.
      clip_norm: G, above 0; infinity without noise.
      accounting: the smallest client, rounds and delta; None for nothing.
      batch_size: examples a round.
      estimator: of the gradient.
      passes: as of `privacy.local_spent`.

    Raises:
      TypeError, ValueError: noise without a bound; an account of no noise.
    """
    checks.real("clip_norm", clip_norm, above=0, infinite=True)
    checks.real("noise_multiplier", multiplier, least=0)
    if multiplier > 0 and math.isinf(clip_norm):
        raise ValueError(
            f"clip_norm={clip_norm} bounds nothing: give noise_multiplier=0, or a "
            f"finite norm, got noise_multiplier={multiplier}"
        )
    epsilons, privacy = (), None
    if multiplier > 0:
        words = "noise at the client is added, but nothing is accounted"
        privacy = Privacy(mechanism=words)
    if accounting is not None:
        how = {"batch_size": batch_size, "estimator": estimator, "passes": passes}
        epsilons = _epsilons(multiplier, accounting, **how)
        privacy = _privacy(multiplier, accounting, **how)
    return LocalNoise(
        multiplier=multiplier,
        clip_norm=clip_norm,
        accounting=accounting,
        epsilons=epsilons,
        privacy=privacy,
    )


def _epsilons(
    multiplier: float, accounting: LocalAccounting, **how
) -> tuple[float, ...]:
    """Epsilon after each round; composition depends on the number of rounds only."""
    advice = "write privacy.LocalAccounting(n_examples, rounds, delta)"
    checks.instance("accounting", accounting, LocalAccounting, advice).checked()
    if multiplier == 0:
        raise ValueError(
            "noise_multiplier=0 adds no noise, of which there is nothing to account: "
            "leave accounting out"
        )
    done = range(1, accounting.rounds + 1)
    parts = [accounting._replace(rounds=rounds) for rounds in done]
    return tuple(local_spent(multiplier, part, **how).epsilon for part in parts)


def _privacy(multiplier: float, accounting: LocalAccounting, **how) -> Privacy:
    """The guarantee in words, and the rounds that it is for."""
    spent = local_spent(multiplier, accounting, **how)
    words = (
        f"epsilon {spent.epsilon:.3g} at delta {spent.delta:g} after "
        f"{accounting.rounds} rounds, {spent.relation}, {spent.mechanism}"
    )
    return Privacy(rounds=accounting.rounds, delta=spent.delta, mechanism=words)


def check_no_weight(task: Task, method: str = "soteriafl") -> None:
    """Refuses weights of examples: one could move more than its clip allows.

    Args:
      task: the loss.
      method: its name, for the message.

    Raises:
      ValueError: it has a weight.
    """
    if isinstance(task, Task) and task.weight is not None:
        raise ValueError(
            f"{method}: each example counts the same, or one could move more than its "
            "clip allows; expected a Task without weight"
        )


def check_table(estimator: str, table_rows: int | None, index: str | None) -> None:
    """Refuses a table for an estimator without one, and saga without a table.

    Args:
      estimator: of the gradient.
      table_rows: of saga.
      index: of saga.

    Raises:
      TypeError, ValueError: says what to leave out or to give.
    """
    if estimator != "saga":
        if table_rows is None and index is None:
            return
        raise ValueError(
            "table_rows and index are of estimator='saga', got estimator="
            f"{estimator!r}, table_rows={table_rows}, index={index!r}; leave them out"
        )
    if table_rows is None or index is None:
        raise ValueError(
            "estimator='saga' keeps a gradient an example: expected table_rows, the "
            "examples of the largest client, and index, the column that numbers them, "
            f"got table_rows={table_rows}, index={index!r}"
        )
    checks.whole("table_rows", table_rows, least=1)
    checks.text("index", index)
