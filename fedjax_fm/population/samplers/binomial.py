"""Binomial numbers by inversion of an exact table.

`jax.random.binomial` works in float32: at n = 1e6 and probability 1e-4 a chi-square
test over 2e5 draws already tells it from the binomial law (13 standard deviations).
Here the table is made in float64 on the host and kept as 64-bit integers, so that a
draw is a comparison of integers on the device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Outcomes beyond a tail of exp(-60) < 1e-26 are left out: 2**-64, the finest a table
# knows, is 5e-20.
_LOG_TAIL = 60.0


class Binomial(NamedTuple):
    """A binomial law: P(X = first + i) = pmf[i].

    What is left out on both sides has a probability below 1e-25.

    Attributes:
      first: the smallest outcome that is kept.
      pmf: f64[outcomes].
    """

    first: int
    pmf: np.ndarray


def binomial(n: int, rate: float) -> Binomial:
    """The law of the number of successes in n trials.

    From the mode outwards by pmf(k + 1) / pmf(k) = (n - k) / (k + 1) * rate / (1 -
    rate), then normalised; the relative error stays below 1e-11 for n up to 1e6.

    Args:
      n: trials.
      rate: probability of a success, 0 < rate <= 1.
    """
    if rate == 1.0:
        return Binomial(n, np.ones(1))
    mode = min(int((n + 1) * rate), n)
    # Bernstein: P(|X - mean| >= t) <= 2 exp(-t^2 / (2 variance + 2 t / 3)).
    third = _LOG_TAIL / 3
    reach = int(third + np.sqrt(third**2 + 2 * _LOG_TAIL * n * rate * (1 - rate))) + 2
    first, last = max(mode - reach, 0), min(mode + reach, n)
    k = np.arange(first, last, dtype=np.float64)
    ratios = (n - k) / (k + 1) * (rate / (1 - rate))
    above = np.cumprod(ratios[mode - first :])
    below = np.cumprod(1 / ratios[: mode - first][::-1])[::-1]
    pmf = np.concatenate([below, [1.0], above])
    return Binomial(first, pmf / pmf.sum())


def quantile(law: Binomial, tail: float) -> int:
    """The smallest c with P(X > c) < tail.

    Args:
      law: of X.
      tail: a probability.
    """
    # P(X >= first + i), small numbers added first.
    at_least = np.cumsum(law.pmf[::-1])[::-1]
    n_likely = int(np.sum(at_least >= tail))
    return law.first + n_likely - 1


class Table(NamedTuple):
    """X = first + the number of thresholds that a uniform integer of 64 bits reaches.

    Attributes:
      first: the smallest outcome.
      thresholds: u64[outcomes - 1], ascending.
    """

    first: int
    thresholds: np.ndarray


def table(law: Binomial) -> Table:
    """The law in steps of 2**-64; outcomes that would get no step are left out.

    Args:
      law: what to draw from.
    """
    mode = int(np.argmax(law.pmf))
    is_mode = np.arange(law.pmf.size) == mode
    steps = np.where(is_mode, 0.0, law.pmf) * 2.0**64
    widths = np.rint(steps).astype(np.uint64)
    # 0 stands for 2**64 if there is but one outcome.
    rest = (2**64 - int(widths.sum())) % 2**64
    kept = np.append(np.flatnonzero(widths), mode)
    widths[mode] = rest
    head, last = int(kept.min()), int(kept.max())
    return Table(law.first + head, np.cumsum(widths[head:last], dtype=np.uint64))


def draw(source: Table, key: jax.Array) -> jax.Array:
    """Draws one number, i32[], from 64 random bits.

    Args:
      source: the law as a table.
      key: consumed.
    """
    high = (source.thresholds >> np.uint64(32)).astype(np.uint32)
    low = source.thresholds.astype(np.uint32)
    bits = jax.random.bits(key, (2,), jnp.uint32)
    passed = (high < bits[0]) | ((high == bits[0]) & (low <= bits[1]))
    return jnp.int32(source.first) + jnp.sum(passed, dtype=jnp.int32)
