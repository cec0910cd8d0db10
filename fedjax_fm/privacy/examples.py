"""Privacy of single examples, of clients who add the noise themselves."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.privacy.accounting import Spent
from fedjax_fm.privacy.mechanisms import epsilon_of_events, gaussian, sampled

ESTIMATORS = ("sgd", "svrg", "saga")
ONE_REPLACED = "one example of one client replaced"
SPLITS = np.linspace(0.05, 0.95, 19)  # of the noise's variance between two releases


class LocalAccounting(NamedTuple):
    """What clients that add noise themselves are accounted for.

    Attributes:
      n_examples: of the smallest client; a larger one spends less.
      rounds: planned, in all of which a client may take part.
      delta: of the guarantee, above 0 and below 1.
    """

    n_examples: int
    rounds: int
    delta: float

    def checked(self) -> "LocalAccounting":
        """Itself, after a check of its values.

        Raises:
          TypeError, ValueError: names the value that makes no sense.
        """
        checks.whole("n_examples", self.n_examples, least=1)
        checks.whole("rounds", self.rounds, least=1)
        checks.real("delta", self.delta, above=0, below=1)
        return self


class ExamplePrivacy(NamedTuple):
    """DP-SGD inside each client, which keeps single examples from its own server.

        g = 1/m (sum_j clip(grad loss_j, C) + z C N(0, I))

    Attributes:
      clip_norm: C, of each example's gradient, above 0.
      noise_multiplier: z, at least 0.
      accounting: what z is accounted for; None for nothing.
      microbatch: examples whose gradients exist at one time, a divisor of the batch
        size; None: all of a batch. It changes memory, not the result.

    References:
      Abadi et al. 2016, arXiv 1607.00133, algorithm 1.

    Example:
      >>> from fedjax_fm import privacy
      >>> found = privacy.ExamplePrivacy(clip_norm=1.0, noise_multiplier=0.8)
      >>> found.microbatch is None
      True
    """

    clip_norm: float
    noise_multiplier: float = 0.0
    accounting: LocalAccounting | None = None
    microbatch: int | None = None


def local_spent(
    noise_multiplier: float,
    accounting: LocalAccounting,
    *,
    batch_size: int,
    estimator: str = "sgd",
    passes: int | None = None,
) -> Spent:
    """Privacy of one client's examples after rounds of noisy clipped gradients.

    The noise on the mean over m = min(batch_size, n_examples) examples, each clipped to
    the norm G, has deviation noise_multiplier G / m. What happens to it afterwards,
    compression above all, costs nothing.

    Args:
      noise_multiplier: in units of G / m; 0 spends infinity.
      accounting: the smallest client, rounds, delta.
      batch_size: examples a round, drawn anew without replacement.
      estimator: "sgd"; "svrg", which adds differences to a snapshot's gradients; or
        "saga", to a table of gradients.
      passes: of sgd, over all examples in a round, each in one batch of a pass; None:
        one batch a round, drawn.

    Returns:
      epsilon at delta, for one example replaced by another.

    Formal guarantees:
      In units of G / m, with q = m / n:

      | estimator | one example moves | accounted as, a round |
      |---|---|---|
      | sgd | 2 if drawn | Gaussian of sensitivity 2, sampled without replacement |
      | svrg | 4 if drawn, and 2 q | that with 4, beside a Gaussian of 2 q; they share the noise |
      | saga | 4 if drawn, and 2 q | Gaussian of sensitivity 4 + 2 q, not amplified |
      | sgd, passes | 2, once a pass | Gaussian of sensitivity 2, each pass, not amplified |

      The table of SAGA remembers who was drawn, so that later rounds depend on it:
      sampling is not counted there. Epsilon is an upper bound, by Renyi orders.

    Raises:
      TypeError, ValueError: numbers out of bounds, another estimator.
      ImportError: dp-accounting is not installed.

    References:
      Wang, Balle, Kasiviswanathan 2019, arXiv 1808.00087 (without replacement); Li et
      al., SoteriaFL, 2022, arXiv 2206.09888, section 4.

    Example:
      >>> accounting = LocalAccounting(n_examples=1000, rounds=100, delta=1e-5)
      >>> round(local_spent(4.0, accounting, batch_size=50).epsilon, 2)
      2.49
    """
    checks.real("noise_multiplier", noise_multiplier, least=0)
    checks.whole("batch_size", batch_size, least=1)
    checks.choice("estimator", estimator, ESTIMATORS)
    if passes is not None:
        checks.whole("passes", passes, least=1)
        if estimator != "sgd":
            raise ValueError(
                f"passes={passes} is accounted for with estimator='sgd', got "
                f"estimator={estimator!r}; leave it out"
            )
    accounting = checks.instance(
        "accounting", accounting, LocalAccounting, "write privacy.LocalAccounting(...)"
    ).checked()
    n = accounting.n_examples
    drawn = min(batch_size, n)
    words = f"{estimator}, {drawn} of {n} examples a round, noise at the client"
    if passes is not None:
        words = f"sgd, {passes} passes a round, noise at the client"
    epsilon = float("inf")
    if noise_multiplier > 0:
        z = float(noise_multiplier)
        ways = (
            _events(z, drawn, n, estimator) if passes is None else [[gaussian(z / 2)]]
        )
        times = accounting.rounds * (1 if passes is None else passes)
        epsilon = min(
            epsilon_of_events(events, times, accounting.delta) for events in ways
        )
    return Spent(
        epsilon=epsilon,
        delta=accounting.delta,
        relation=ONE_REPLACED,
        mechanism=words,
    )


def _events(z: float, drawn: int, n: int, estimator: str) -> list[list[Any]]:
    """Ways to account for a round, each a list of what is released together."""
    q = drawn / n
    if estimator == "sgd":
        return [[sampled(z / 2, drawn, n)]]
    if estimator == "saga":
        return [[gaussian(z / (4 + 2 * q))]]
    found = []
    for share in SPLITS:
        of_batch, of_snapshot = z * share**0.5, z * (1 - share) ** 0.5
        pair = [sampled(of_batch / 4, drawn, n), gaussian(of_snapshot / (2 * q))]
        found.append(pair)
    return found
