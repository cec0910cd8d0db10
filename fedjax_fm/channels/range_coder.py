"""An arithmetic coder on the host: a string of symbols in its entropy and two bits.

Python integers hold the interval. Its width never falls below 2^64, so that a total of
2^32 counts costs less than 2^-31 bits a symbol by rounding. A million symbols take
some tenths of a second: for studies, not for rounds.
"""

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

WORD = 32
FLOOR = 1 << 64  # the interval is widened by whole words when it falls below
START = 1 << 96
TOP = START.bit_length() - 1  # bits of the interval's lower end; above is the carry
MASK = (1 << WORD) - 1


class RangeCoded(NamedTuple):
    """A string of bits; a decoder also needs the counts and the number of symbols.

    Attributes:
      data: bytes, first bit highest.
      n_bits: how many bits of them count.
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
      Martin, Range encoding, 1979. The carry goes back through the words that are
      written already.
    """
    frequency, start, total = _law(counts)
    symbols = np.asarray(symbols).ravel()
    if symbols.size:
        _check_symbols(symbols, frequency)
    low, width, words = 0, START, []
    for symbol in symbols.tolist():
        part = width // total
        low += part * start[symbol]
        width = part * frequency[symbol]
        while width < FLOOR:
            words.append(low >> (TOP - WORD))  # may hold a carry: settled at the end
            low = (low << WORD) & ((1 << TOP) - 1)
            width <<= WORD
    return _finished(words, low, width)


def _check_symbols(symbols: np.ndarray, frequency: list[int]) -> None:
    """Refuses symbols that the law does not have."""
    least, most = symbols.min(), symbols.max()
    if least < 0 or most >= len(frequency):
        raise ValueError(
            f"expected symbols from 0 to {len(frequency) - 1}, got {least} to {most}"
        )
    if min(frequency[s] for s in np.unique(symbols)) == 0:
        raise ValueError("range_encode: a symbol occurs whose count is zero")


def _finished(words: list[int], low: int, width: int) -> RangeCoded:
    """The shortest string of bits all of whose continuations lie in the interval.

    The interval is [low, low + width).
    """
    drop = width.bit_length() - 1  # low bits that may be anything
    tail = -(-low >> drop)  # rounded up: the least multiple of 2^drop that is not below
    while ((tail + 1) << drop) > low + width:
        drop -= 1
        tail = -(-low >> drop)
    value = 0 if not words else _joined(words)
    n_tail = TOP - drop
    n_bits = WORD * len(words) + n_tail
    value = ((value << n_tail) + tail) << (-n_bits % 8)
    return RangeCoded(value.to_bytes(-(-n_bits // 8), "big"), n_bits)


def _joined(words: list[int]) -> int:
    """The words as one integer, their carries settled."""
    carry, clean = 0, []
    for word in reversed(words):
        word += carry
        clean.append(word & MASK)
        carry = word >> WORD
    in_order = np.array(clean[::-1], ">u4")
    return int.from_bytes(in_order.tobytes(), "big")


def range_decode(coded: RangeCoded, counts: np.ndarray, n: int) -> np.ndarray:
    """The inverse of `range_encode`: int64[n].

    Args:
      coded: what `range_encode` returned.
      counts: int[m], those that it was given.
      n: how many symbols there are.

    Raises:
      ValueError: fewer bits than were written.
    """
    frequency, start, total = _law(counts)
    if len(coded.data) != -(-coded.n_bits // 8):
        raise ValueError(
            f"{coded.n_bits} bits take {-(-coded.n_bits // 8)} bytes, got "
            f"{len(coded.data)}: truncated"
        )
    data = coded.data + bytes(WORD // 4 + TOP // 8)
    offset, width = int.from_bytes(data[: TOP // 8], "big"), START
    at = TOP // 8  # the next byte
    ends = np.cumsum(frequency).tolist()
    found = np.empty(n, np.int64)
    for i in range(n):
        part = width // total
        symbol = bisect_right(ends, min(offset // part, total - 1))
        offset -= part * start[symbol]
        width = part * frequency[symbol]
        while width < FLOOR:
            word = (data[at : at + 4] + bytes(4))[:4]
            offset = (offset << WORD) | int.from_bytes(word, "big")
            width <<= WORD
            at += 4
        found[i] = symbol
    return found


def _law(counts: np.ndarray) -> tuple[list[int], list[int], int]:
    """(counts, sums before each, total) as Python integers."""
    counts = np.asarray(counts, np.int64)
    is_list = counts.ndim == 1 and counts.size > 0
    if not is_list or counts.min() < 0 or not 0 < counts.sum() <= 1 << 32:
        raise ValueError(
            f"expected counts >= 0 that sum to 1 to 2^32, got {counts.tolist()[:8]}"
        )
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    total = int(counts.sum())
    return counts.tolist(), starts.tolist(), total
