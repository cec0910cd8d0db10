"""Differential privacy at the level of clients: clipping, noise over rounds, accounting."""

from fedjax_fm.privacy.accounting import Spent, multiplier_for, sensitivity, spent
from fedjax_fm.privacy.clipping import clip, clipped_mean
from fedjax_fm.privacy.noise import Noise, banded, binary_tree, independent, square_root_coefficients

__all__ = [
    "Noise",
    "Spent",
    "banded",
    "binary_tree",
    "clip",
    "clipped_mean",
    "independent",
    "multiplier_for",
    "sensitivity",
    "spent",
    "square_root_coefficients",
]
