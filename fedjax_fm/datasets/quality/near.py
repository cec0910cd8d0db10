"""Near duplicates among texts that lie in one place."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.datasets.quality.minhash import MinHash, check_texts
from fedjax_fm.datasets.quality.shingles import jaccard


class Duplicates(NamedTuple):
    """Which texts are near duplicates of which.

    Similar texts are joined step by step: the first and the last of a chain may be less
    similar than any two neighbours, so look at the sizes.

    Attributes:
      first: i64[n], the lowest number of the texts that each is joined with, itself
        included.
    """

    first: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """i64[kept], the first text of each group, in order."""
        return np.flatnonzero(self.first == np.arange(len(self.first)))

    @property
    def sizes(self) -> np.ndarray:
        """i64[kept], how many texts each of them stands for."""
        return np.bincount(self.first, minlength=len(self.first))[self.kept]


def near_duplicates(
    texts: Sequence[str], minhash: MinHash | None = None, *, verify: float | None = None
) -> Duplicates:
    """Groups texts that share a band of hashes.

    The order of texts does not change the groups; the lowest number of each stays.

    Args:
      texts: of one client, for example.
      minhash: how signatures are made. Default: `MinHash()`.
      verify: least similarity of two texts that are joined, by their words: without
        it, some pairs below the threshold are joined by chance.

    Returns:
      The groups.

    Raises:
      TypeError, ValueError: no texts, or a similarity out of bounds.

    References:
      Lee et al. 2022, arXiv 2107.06499, section 4.2.

    Example:
      >>> speech = "now is the winter of our discontent made glorious summer"
      >>> found = near_duplicates([speech, "the rest is silence", speech.upper() + "!"])
      >>> found.kept.tolist(), found.sizes.tolist()
      ([0, 1], [2, 1])
    """
    check_texts(texts)
    how = MinHash() if minhash is None else minhash
    checks.instance("minhash", how, MinHash, "write quality.MinHash()")
    sets = [how.shingles(text) for text in texts]
    bands = bands_of(how.signatures_of_sets(sets), how)
    if verify is None:
        return Duplicates(joined(len(sets), chained(bands)))
    checks.real("verify", verify, least=0, most=1)
    alike = [
        (i, j)
        for i, j in sorted(set(_all_pairs(bands)))
        if jaccard(sets[i], sets[j]) >= verify
    ]
    return Duplicates(joined(len(sets), np.array(alike, np.int64).reshape(-1, 2)))


def bands_of(signatures: np.ndarray, minhash: MinHash) -> np.ndarray:
    """The number of each band among those of all texts; equal bands have one number.

    Args:
      signatures: u64[n, b r].
      minhash: that made them.

    Returns:
      i64[n, b].
    """
    parts = signatures.reshape(-1, minhash.bands, minhash.rows)
    numbers = np.empty(parts.shape[:2], np.int64)
    for band in range(minhash.bands):
        own = parts[:, band]
        _, inverse = np.unique(own, axis=0, return_inverse=True)
        numbers[:, band] = inverse.reshape(-1)
    return numbers


def chained(bands: np.ndarray) -> np.ndarray:
    """Pairs that join all rows with an equal number in some column.

    Args:
      bands: [n, b], numbers or keys.

    Returns:
      i64[pairs, 2], each row with the next of its kind.
    """
    found = [np.zeros((0, 2), np.int64)]
    for column in bands.T:
        order = np.argsort(column, kind="stable")
        same = column[order[1:]] == column[order[:-1]]
        pairs = np.stack([order[:-1], order[1:]], axis=1)
        found.append(pairs[same])
    return np.concatenate(found)


def _all_pairs(bands: np.ndarray) -> Iterator[tuple[int, int]]:
    """All pairs of rows, i < j, with an equal number in some column."""
    for column in bands.T:
        order = np.argsort(column, kind="stable")
        cuts = np.flatnonzero(np.diff(column[order])) + 1
        for rows in np.split(order, cuts):
            yield from itertools.combinations(rows.tolist(), 2)


def joined(n: int, pairs: np.ndarray) -> np.ndarray:
    """The lowest number that each is joined with.

    Args:
      n: numbers, from 0.
      pairs: i64[pairs, 2].

    Returns:
      i64[n].
    """
    from scipy import sparse  # takes a while to import

    if not n:
        return np.zeros(0, np.int64)
    ones = np.ones(len(pairs), bool)
    graph = sparse.coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, labels = sparse.csgraph.connected_components(graph, directed=False)
    lowest = np.full(n, n, np.int64)
    np.minimum.at(lowest, labels, np.arange(n))
    return lowest[labels]
