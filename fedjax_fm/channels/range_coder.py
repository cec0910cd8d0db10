"""An arithmetic coder on the host: any string of symbols in its entropy and two bits.

Integers of Python hold the interval: its width never falls below 2^64, so that a total
of 2^32 counts costs less than 2^-31 bits a symbol by rounding. A million symbols take
some tenths of a second: for studies, not for rounds.
"""

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

WORD = 32
FLOOR = 1 << 64  # the interval is widened by whole words when it falls below
START = 1 << 96


class RangeCoded(NamedTuple):
    """`n_bits` bits in `data`, first bit highest.

    What a decoder needs besides: the counts and the number of symbols.
    """

    data: bytes
    n_bits: int


def range_encode(symbols: np.ndarray, counts: np.ndarray) -> RangeCoded:
    """Writes symbols under the law counts / sum(counts).

    Args:
      symbols: int[n], below len(counts); each with a count above zero.
      counts: int[m], at most 2^32 in sum.

    Returns:
      At most the sum of log2(total / count) and 2 bits.

    Raises:
      ValueError: a symbol of count zero, counts that are negative or too many.

    References:
      Martin, Range encoding, 1979; the carry goes back through the words that are written already.
    """
    frequency, start, total = _law(counts)
    symbols = np.asarray(symbols).ravel()
    if symbols.size and (symbols.min() < 0 or symbols.max() >= len(frequency)):
        raise ValueError(
            f"expected symbols from 0 to {len(frequency) - 1}, got "
            f"{symbols.min()} to {symbols.max()}"
        )
    if symbols.size and min(frequency[s] for s in np.unique(symbols)) == 0:
        raise ValueError("range_encode: a symbol occurs whose count is zero")
    low, width, words = 0, START, []
    mask = (1 << WORD) - 1
    top = (
        START.bit_length() - 1
    )  # `low` has this many bits; what is above them is a carry
    for symbol in symbols.tolist():
        part = width // total
        low += part * start[symbol]
        width = part * frequency[symbol]
        while width < FLOOR:
            words.append(low >> (top - WORD))  # may hold a carry: settled at the end
            low = (low << WORD) & ((1 << top) - 1)
            width <<= WORD
    return _finished(words, low, width, top, mask)


def _finished(
    words: list[int], low: int, width: int, top: int, mask: int
) -> RangeCoded:
    """The shortest string of bits all of whose continuations lie in [low, low + width)."""
    drop = width.bit_length() - 1  # low bits that may be anything
    tail = -(-low >> drop)  # rounded up: the least multiple of 2^drop that is not below
    while ((tail + 1) << drop) > low + width:
        drop -= 1
        tail = -(-low >> drop)
    value = 0 if not words else _joined(words, mask)
    n_tail = top - drop
    n_bits = WORD * len(words) + n_tail
    value = (value << n_tail) + tail
    return RangeCoded((value << (-n_bits % 8)).to_bytes(-(-n_bits // 8), "big"), n_bits)


def _joined(words: list[int], mask: int) -> int:
    carry, clean = 0, []
    for word in reversed(words):
        word += carry
        clean.append(word & mask)
        carry = word >> WORD
    return int.from_bytes(np.array(clean[::-1], ">u4").tobytes(), "big")


def range_decode(coded: RangeCoded, counts: np.ndarray, n: int) -> np.ndarray:
    """The inverse of `range_encode`: int64[n].

    Raises:
      ValueError: fewer bits than were written.
    """
    frequency, start, total = _law(counts)
    if len(coded.data) != -(-coded.n_bits // 8):
        raise ValueError(
            f"{coded.n_bits} bits take {-(-coded.n_bits // 8)} bytes, got "
            f"{len(coded.data)}: truncated"
        )
    top = START.bit_length() - 1
    data = coded.data + bytes(WORD // 4 + top // 8)
    offset, width, at = int.from_bytes(data[: top // 8], "big"), START, top // 8
    ends, found = np.cumsum(frequency).tolist(), np.empty(n, np.int64)
    for i in range(n):
        part = width // total
        symbol = bisect_right(ends, min(offset // part, total - 1))
        offset -= part * start[symbol]
        width = part * frequency[symbol]
        while width < FLOOR:
            offset = (offset << WORD) | int.from_bytes(
                (data[at : at + 4] + bytes(4))[:4], "big"
            )
            width <<= WORD
            at += 4
        found[i] = symbol
    return found


def _law(counts: np.ndarray) -> tuple[list[int], list[int], int]:
    """(counts, sums before each, total) as Python integers."""
    counts = np.asarray(counts, np.int64)
    if (
        counts.ndim != 1
        or counts.size == 0
        or counts.min() < 0
        or not 0 < counts.sum() <= 1 << 32
    ):
        raise ValueError(
            f"expected counts >= 0 that sum to 1 to 2^32, got {counts.tolist()[:8]}"
        )
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return counts.tolist(), starts.tolist(), int(counts.sum())
