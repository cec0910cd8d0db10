"""Differential privacy at the level of clients: clipping, noise and accounting.

What is protected is all that one client contributes to a run. `clipped_mean` bounds
each contribution, a `Noise` is added to the sum by the server, and `multiplier_for`
says how much noise a target (epsilon, delta) needs; `spent` is its inverse.
"""

from fedjax_fm.privacy.accounting import (
    Accounted,
    Accounting,
    Multiplier,
    Spent,
    multiplier_for,
    spent,
)
from fedjax_fm.privacy.clipping import clip, clipped_mean
from fedjax_fm.privacy.examples import ExamplePrivacy, LocalAccounting, local_spent
from fedjax_fm.privacy.noise import (
    Noise,
    banded,
    binary_tree,
    independent,
    square_root_coefficients,
)
from fedjax_fm.privacy.sensitivity import sensitivity

__all__ = [
    "Accounted",
    "Accounting",
    "ExamplePrivacy",
    "LocalAccounting",
    "Multiplier",
    "Noise",
    "Spent",
    "banded",
    "binary_tree",
    "clip",
    "clipped_mean",
    "independent",
    "local_spent",
    "multiplier_for",
    "sensitivity",
    "spent",
    "square_root_coefficients",
]
