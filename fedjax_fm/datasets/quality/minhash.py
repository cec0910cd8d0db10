"""MinHash: short signatures that agree as often as sets overlap.

Broder 1997; Leskovec, Rajaraman, Ullman 2014, Mining of Massive Datasets, chapter 3.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fedjax_fm import checks
from fedjax_fm.datasets.quality.shingles import shingles

PRIME = (1 << 61) - 1  # of Mersenne
_HALF, _HIGH = np.uint64((1 << 31) - 1), np.uint64((1 << 30) - 1)


@dataclass(frozen=True)
class MinHash:
    """How texts are made into signatures, and signatures into bands.

    A text is the set of its runs of words, `shingles`. Hash k of a set is the least of
    (a_k x + c_k) mod (2^61 - 1) over the hashes x of its members, so that

        P[hash k of A = hash k of B] = |A & B| / |A | B| = s,
        P[a band of r hashes is equal in at least one of b places] = 1 - (1 - s^r)^b

    Two texts with an equal band are called near duplicates.

    Attributes:
      bands: b, at least 1. The default is FineWeb's.
      rows: r, hashes of a band, at least 1.
      n_words: of a run.
      keep_digits: whether numbers count; False: texts that differ in numbers alone are
        the same.
      seed: of all hashes, 0 to 2^64 - 1; signatures of other seeds do not compare.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Broder 1997. FineWeb's bands and rows: datatrove's `MinhashConfig`. Lee et al.
      2022, arXiv 2107.06499, section 4.2 (450 bands of 20 rows, as RefinedWeb).

    Example:
      >>> minhash = MinHash()
      >>> round(minhash.threshold, 2), round(minhash.probability(0.8), 3)
      (0.72, 0.924)
      >>> minhash.signatures(["a rose is a rose is a rose"]).shape
      (1, 112)
    """

    bands: int = 14
    rows: int = 8
    n_words: int = 5
    keep_digits: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        checks.whole("bands", self.bands, least=1)
        checks.whole("rows", self.rows, least=1)
        checks.whole("n_words", self.n_words, least=1)
        checks.flag("keep_digits", self.keep_digits)
        checks.whole("seed", self.seed, least=0, most=2**64 - 1)

    @property
    def threshold(self) -> float:
        """(1/b)^(1/r), near where the probability of a pair rises most steeply."""
        return (1 / self.bands) ** (1 / self.rows)

    def probability(self, similarity: float) -> float:
        """The probability that two texts share a band.

        Args:
          similarity: Jaccard's, of their runs of words, 0 to 1.

        Returns:
          1 - (1 - s^r)^b.
        """
        checks.real("similarity", similarity, least=0, most=1)
        return 1 - (1 - similarity**self.rows) ** self.bands

    def shingles(self, text: str) -> frozenset[str]:
        """The runs of words of a text.

        Args:
          text: any.
        """
        return shingles(text, self.n_words, keep_digits=self.keep_digits)

    def signatures(self, texts: Sequence[str]) -> np.ndarray:
        """The least hashes of each text.

        Args:
          texts: any; none is a single text, which would be read letter by letter.

        Returns:
          u64[texts, b r], of which hashes k r to (k + 1) r are band k.

        Raises:
          TypeError, ValueError: one of them is no text.
        """
        check_texts(texts)
        return self.signatures_of_sets([self.shingles(text) for text in texts])

    def signatures_of_sets(self, sets: Sequence[Collection[str]]) -> np.ndarray:
        """The least hashes of each set of strings.

        Args:
          sets: none of them empty.

        Returns:
          u64[sets, b r].

        Raises:
          ValueError: an empty set.
        """
        n_hashes = self.bands * self.rows
        if not len(sets):
            return np.zeros((0, n_hashes), np.uint64)
        sizes = np.array([len(members) for members in sets])
        if not sizes.all():
            raise ValueError(
                f"expected sets with members, got an empty one, number {sizes.argmin()}"
            )
        members = self._hashed(sets)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        draw = np.random.default_rng([self.seed, 0x317]).integers
        scales = draw(1, PRIME, n_hashes, dtype=np.uint64)
        shifts = draw(0, PRIME, n_hashes, dtype=np.uint64)
        found = np.empty((len(sets), n_hashes), np.uint64)
        for k, (scale, shift) in enumerate(zip(scales, shifts, strict=True)):
            hashed = affine(members, scale, shift)
            found[:, k] = np.minimum.reduceat(hashed, starts)
        return found

    def _hashed(self, sets: Sequence[Collection[str]]) -> np.ndarray:
        """u64[members of all sets], each below 2^61 - 1, by a hash that has the seed."""
        salt = self.seed.to_bytes(16, "little")
        known: dict[str, int] = {}
        for members in sets:
            for member in members:
                if member not in known:
                    digest = hashlib.blake2b(member.encode(), digest_size=8, salt=salt)
                    known[member] = int.from_bytes(digest.digest(), "little") % PRIME
        flat = (known[member] for members in sets for member in members)
        return np.fromiter(flat, np.uint64)


def affine(x: np.ndarray, scale: np.uint64, shift: np.uint64) -> np.ndarray:
    """(scale x + shift) mod (2^61 - 1), exactly, in words of 64 bits.

    The product of two numbers of 61 bits takes 122: both are cut into halves of 30 and
    31 bits, and 2^61 is 1.

    Args:
      x: u64[...], below 2^61 - 1.
      scale: below 2^61 - 1.
      shift: below 2^61 - 1.

    Returns:
      u64[...], below 2^61 - 1.
    """
    bits = np.uint64(31)
    x_high, x_low = x >> bits, x & _HALF
    scale_high, scale_low = scale >> bits, scale & _HALF
    high = (x_high * scale_high) << np.uint64(1)  # 2^62 is 2
    middle = x_high * scale_low + x_low * scale_high
    # 2^31 times the middle: its upper part has passed 2^61.
    middle = (middle >> np.uint64(30)) + ((middle & _HIGH) << bits)
    total = high + middle + x_low * scale_low + shift
    prime = np.uint64(PRIME)
    total = (total & prime) + (total >> np.uint64(61))
    return np.where(total >= prime, total - prime, total)


def similarities(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Estimates of Jaccard's similarity: the share of hashes that are equal.

    The estimate has mean s and variance s (1 - s) / (b r).

    Args:
      one: u64[..., b r], of `MinHash.signatures`.
      other: u64[..., b r], of the same `MinHash`.

    Returns:
      f64[...].

    Raises:
      ValueError: signatures of different lengths.

    Example:
      >>> made = MinHash().signatures(["a b c d e f", "a b c d e f", "u v w x y z"])
      >>> similarities(made[0], made[1:]).tolist()
      [1.0, 0.0]
    """
    a, b = np.asarray(one), np.asarray(other)
    if a.shape[-1:] != b.shape[-1:] or not a.ndim:
        raise ValueError(
            "expected signatures of one MinHash, [..., b r], got shapes "
            f"{list(a.shape)} and {list(b.shape)}"
        )
    return (a == b).mean(axis=-1)


def check_texts(texts: Sequence[str]) -> None:
    """Refuses one text where several are expected.

    Args:
      texts: what should be several.

    Raises:
      TypeError: it is one.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(
            f"expected several texts, got one: texts={texts!r:.60}; write [text]"
        )
