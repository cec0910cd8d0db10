"""Attacks on federated training, of which the method under attack knows nothing.

`attacked(algorithm, attack, liars)` makes liars of some clients; `poisoned` changes
their data instead.
"""

from fedjax_fm.robust.attacks.alone import gaussian, sign_flip
from fedjax_fm.robust.attacks.attack import Attack, Seen, liars_of
from fedjax_fm.robust.attacks.attacked import attacked
from fedjax_fm.robust.attacks.data import poisoned, relabelled
from fedjax_fm.robust.attacks.margins import min_max, min_sum
from fedjax_fm.robust.attacks.moments import alie, ipm, supported_deviations
from fedjax_fm.robust.attacks.replacement import boosted, replacement

__all__ = [
    "Attack",
    "Seen",
    "alie",
    "attacked",
    "boosted",
    "gaussian",
    "ipm",
    "liars_of",
    "min_max",
    "min_sum",
    "poisoned",
    "relabelled",
    "replacement",
    "sign_flip",
    "supported_deviations",
]
