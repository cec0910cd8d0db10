"""Three lengths of a message, on the host: as packed, by entropy, and when coded."""

import math
from typing import NamedTuple

import jax
import numpy as np

from fedjax_fm.channels.buffers import Codes, CountedPlaces, Places
from fedjax_fm.channels.nnadq import Levels
from fedjax_fm.channels.payload import payload_bits
from fedjax_fm.channels.prefix_codes import elias_encode, rice_encode
from fedjax_fm.channels.range_coder import range_encode
from fedjax_fm.types import Rows, Tree, Unbilled

PARTS = (Codes, Places, CountedPlaces, Levels, Rows, Unbilled)


class Lengths(NamedTuple):
    """Bits of one message.

    Attributes:
      fixed: its packed buffers, what `bits` says.
      entropy: n H over its strings of symbols and log2 C(n, k) for positions, in sum;
        scalars as they are.
      coded: as written by an arithmetic coder for symbols, with its model, and by Rice
        codes for positions.
    """

    fixed: int
    entropy: float
    coded: int

    def __add__(self, other: "Lengths") -> "Lengths":  # type: ignore[override]
        return Lengths(
            self.fixed + other.fixed,
            self.entropy + other.entropy,
            self.coded + other.coded,
        )


def code_lengths(payload: Tree) -> Lengths:
    """Measures one message by running the coders on the host.

    Some tenths of a second a million codes. Symbols are written under their own
    frequencies, which a receiver must be told: 32 bits for a string of flags, else
    which symbols occur, as a bitmap or a list, and how often, in Elias's gamma code.
    For few codes that model outweighs the gain: `coded` may exceed `fixed`.

    Args:
      payload: of one sender (not a batch of them), with concrete arrays.

    Returns:
      `Lengths`, in bits.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> mask = {"mask": jnp.arange(1000) < 50}
      >>> payload, _ = channels.bernoulli_mask().encode((), mask, jax.random.key(0))
      >>> fixed, entropy, coded = channels.code_lengths(payload)
      >>> fixed, round(entropy), coded
      (1000, 286, 319)
    """
    parts = jax.tree.leaves(payload, is_leaf=lambda node: isinstance(node, PARTS))
    nothing = Lengths(0, 0.0, 0)
    return sum((_lengths(part) for part in parts), nothing)


def _lengths(part: object) -> Lengths:
    """Of one part of a payload."""
    fixed = int(payload_bits(part))
    if isinstance(part, Codes):
        codes = np.asarray(part.unpack())
        if isinstance(part.live, Unbilled):
            codes = codes[: int(part.live.value)]
        return _of_symbols(fixed, codes, part.symbols)
    if isinstance(part, Levels):
        codes = np.asarray(part.codes())
        scalars = Lengths(96, 96.0, 96)  # norm, offset and level
        return _of_symbols(fixed - 96, codes, 2 * int(part.level) + 2) + scalars
    if isinstance(part, Places | CountedPlaces):
        mask = np.asarray(part.unpack())
        if isinstance(part, Places):
            mask = np.bincount(mask, minlength=part.n) > 0
        k = int(mask.sum())
        told = 32 if isinstance(part, CountedPlaces) else 0  # bits of the count
        coded = rice_encode(mask).n_bits if k else 0
        return Lengths(fixed, told + log2_choose(part.n, k), told + coded)
    return Lengths(fixed, float(fixed), fixed)


def _of_symbols(fixed: int, codes: np.ndarray, symbols: int) -> Lengths:
    """Of a string of symbols, and the model that its decoder is told."""
    if codes.size == 0:
        return Lengths(fixed, 0.0, 0)
    present, numbers, counts = np.unique(codes, return_inverse=True, return_counts=True)
    information = np.log2(codes.size / counts)  # bits of each symbol
    entropy = float(np.sum(counts * information))
    if symbols == 2:
        model = 32
    else:
        width = (symbols - 1).bit_length()
        model = min(symbols, present.size * width) + elias_encode(counts).n_bits
    return Lengths(fixed, entropy, model + range_encode(numbers, counts).n_bits)


def log2_choose(n: int, k: int) -> float:
    """log2 of the number of k-subsets of n.

    Args:
      n: size of the set.
      k: size of the subsets.
    """
    chosen, left = math.lgamma(k + 1), math.lgamma(n - k + 1)
    return (math.lgamma(n + 1) - chosen - left) / math.log(2)
