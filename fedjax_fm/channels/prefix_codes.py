"""Rice and Elias codes on the host, written and read.

Their lengths are those of `kernels.code_lengths`, to the bit. Parts of equal kind lie
together (first all unary parts, then all low bits): the length is that of the usual
order, and numpy reads and writes a million numbers at once.
"""

from typing import NamedTuple

import numpy as np

GOLDEN = -np.log((np.sqrt(5) - 1) / 2)


class Bits(NamedTuple):
    """A string of bits.

    Attributes:
      data: bytes, first bit highest; the last byte is filled with zeros.
      n_bits: how many bits of them count.
    """

    data: bytes
    n_bits: int


def rice_parameter(n: int, k: int) -> int:
    """The best number of low bits for the gaps between k marks among n places.

    Args:
      n: places.
      k: marks.

    References:
      Sattler et al. 2018, arXiv 1805.08768, equation 15.
    """
    share = np.clip(k / n, 1e-9, 1 - 1e-6)
    exponent = np.log2(GOLDEN / -np.log1p(-share))
    return int(np.clip(1 + np.floor(exponent), 0, 31))


def rice_encode(mask: np.ndarray, low_bits: int | None = None) -> Bits:
    """The gaps between marks: b + 1 + floor((gap - 1) / 2^b) bits each.

    A receiver needs n, the number of marks, and b unless it follows from the two.

    Args:
      mask: bool[n], with the marks.
      low_bits: b; None for `rice_parameter` of the mask.
    """
    places = np.flatnonzero(mask)
    b = rice_parameter(mask.size, places.size) if low_bits is None else low_bits
    gap = np.diff(places, prepend=-1) - 1
    low = gap & ((1 << b) - 1)
    widths = np.full(gap.size, b)
    return _packed(_unary(gap >> b), _fields(low, widths))


def rice_decode(bits: Bits, n: int, k: int, low_bits: int | None = None) -> np.ndarray:
    """The inverse of `rice_encode`: bool[n] with k marks.

    Args:
      bits: what `rice_encode` returned.
      n: length of the mask.
      k: its marks.
      low_bits: b as it was given to `rice_encode`.

    Raises:
      ValueError: the code is truncated, or of another message.
    """
    b = rice_parameter(n, k) if low_bits is None else low_bits
    stream = _Reader(bits)
    high = stream.unary(k)
    gap = (high << b) | stream.fields(np.full(k, b))
    mask = np.zeros(n, bool)
    mask[np.cumsum(gap + 1) - 1] = True
    stream.close()
    return mask


def elias_encode(numbers: np.ndarray, code: str = "gamma") -> Bits:
    """Numbers in one of Elias's codes.

    Args:
      numbers: int[n], from 1 to 2^32 - 1.
      code: "gamma", "delta" or "omega".

    Raises:
      ValueError: a number out of that range, or another code.
    """
    parts = _elias(np.asarray(numbers, np.int64), code)
    return _packed(*parts)


def elias_decode(bits: Bits, n: int, code: str = "gamma") -> np.ndarray:
    """The inverse of `elias_encode`: int64[n].

    Args:
      bits: what `elias_encode` returned.
      n: how many numbers there are.
      code: "gamma", "delta" or "omega", as they were written.

    Raises:
      ValueError: the code is truncated, or of another message.
    """
    stream = _Reader(bits)
    numbers = stream.elias(n, code)
    stream.close()
    return numbers


def run_level_encode(codes: np.ndarray, code: str = "gamma") -> Bits:
    """QSGD's sparse code: gap, sign and level of every code that is not zero.

    A receiver needs n and the number of codes that are not zero.

    Args:
      codes: int[n], signed levels.
      code: Elias's code of gaps and levels: "gamma", "delta" or "omega".
    """
    places = np.flatnonzero(codes)
    levels = np.asarray(codes, np.int64)[places]
    gaps = _elias(np.diff(places, prepend=-1), code)
    signs = (levels < 0).astype(np.uint8)
    sizes = _elias(np.abs(levels), code)
    return _packed(*gaps, signs, *sizes)


def run_level_decode(bits: Bits, n: int, k: int, code: str = "gamma") -> np.ndarray:
    """The inverse of `run_level_encode`: int64[n].

    Args:
      bits: what `run_level_encode` returned.
      n: how many codes there are.
      k: how many of them are not zero.
      code: "gamma", "delta" or "omega", as they were written.

    Raises:
      ValueError: the code is truncated, or of another message.
    """
    stream = _Reader(bits)
    places = np.cumsum(stream.elias(k, code)) - 1
    minus = stream.fields(np.ones(k, np.int64))
    levels = stream.elias(k, code)
    stream.close()
    codes = np.zeros(n, np.int64)
    codes[places] = np.where(minus == 1, -levels, levels)
    return codes


def _log2(numbers: np.ndarray) -> np.ndarray:
    """floor(log2 k), exact below 2^53."""
    _, exponents = np.frexp(numbers.astype(np.float64))
    return exponents.astype(np.int64) - 1


def _elias(numbers: np.ndarray, code: str) -> list[np.ndarray]:
    """The parts of a code, arrays of bits."""
    if numbers.size and (numbers.min() < 1 or numbers.max() >= 1 << 32):
        raise ValueError(
            f"Elias codes take 1 to 2^32 - 1, got {numbers.min()} to {numbers.max()}"
        )
    length = _log2(np.maximum(numbers, 1))
    if code == "gamma":
        return [_unary(length), _fields(numbers, length)]
    if code == "delta":
        return [*_elias(length + 1, "gamma"), _fields(numbers, length)]
    if code == "omega":
        different = np.unique(numbers).tolist()
        known = {k: _omega(k) for k in different}
        text = "".join(known[k] for k in numbers.tolist())
        digits = np.frombuffer(text.encode(), np.uint8)
        return [digits - ord("0")]
    raise ValueError(f"expected code 'gamma', 'delta' or 'omega', got {code!r}")


def _omega(k: int) -> str:
    """Elias's omega code of one number, as a string of digits."""
    text = "0"
    while k > 1:
        text = f"{k:b}{text}"
        k = k.bit_length() - 1
    return text


def _unary(numbers: np.ndarray) -> np.ndarray:
    """As many zeros, then a one, for each."""
    ends = np.cumsum(numbers + 1)
    bits = np.zeros(ends[-1] if ends.size else 0, np.uint8)
    bits[ends - 1] = 1
    return bits


def _fields(values: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The `width` lowest bits of each value, highest first."""
    owner, shift = _layout(widths)
    return ((values[owner] >> shift) & 1).astype(np.uint8)


def _layout(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which field, which of its bits) for every bit of fields in a row."""
    owner = np.repeat(np.arange(widths.size), widths)
    return owner, np.cumsum(widths)[owner] - 1 - np.arange(owner.size)


def _packed(*parts: np.ndarray) -> Bits:
    """Arrays of bits, one after the other, as bytes."""
    bits = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    data = np.packbits(bits).tobytes()
    return Bits(data, bits.size)


class _Reader:
    """Reads a string of bits from its beginning; `at` is the next bit."""

    def __init__(self, bits: Bits):
        if len(bits.data) != -(-bits.n_bits // 8):
            raise ValueError(
                f"{bits.n_bits} bits take {-(-bits.n_bits // 8)} bytes, got "
                f"{len(bits.data)}: truncated"
            )
        self.bits = np.unpackbits(np.frombuffer(bits.data, np.uint8))[: bits.n_bits]
        self.at = 0

    def _take(self, n: int) -> np.ndarray:
        """Reads n bits."""
        if self.at + n > self.bits.size:
            raise ValueError(
                f"a code of {self.bits.size} bits ends too early: truncated, or of "
                "another message"
            )
        self.at += n
        return self.bits[self.at - n : self.at]

    def unary(self, n: int) -> np.ndarray:
        """Reads n numbers, each as many zeros and a one."""
        ones = np.flatnonzero(self.bits[self.at :])[:n]
        if n == 0:
            length = 0
        elif ones.size == n:
            length = int(ones[-1]) + 1
        else:
            length = self.bits.size + 1  # too many: refused
        self._take(length)
        return np.diff(ones, prepend=-1) - 1

    def fields(self, widths: np.ndarray) -> np.ndarray:
        """Reads a number of as many bits for each width."""
        owner, shift = _layout(widths)
        bits = self._take(owner.size)
        numbers = np.bincount(owner, bits * 2.0**shift, widths.size)
        return numbers.astype(np.int64)  # exact below 2^53

    def elias(self, n: int, code: str) -> np.ndarray:
        """Reads n numbers of one of Elias's codes."""
        if code == "gamma":
            length = self.unary(n)
            return (1 << length) | self.fields(length)
        if code == "delta":
            length = self.elias(n, "gamma") - 1
            return (1 << length) | self.fields(length)
        if code == "omega":
            numbers = [self._one_omega() for _ in range(n)]
            return np.array(numbers, np.int64)
        raise ValueError(f"expected code 'gamma', 'delta' or 'omega', got {code!r}")

    def _one_omega(self) -> int:
        """Reads a number of the omega code."""
        k = 1
        while self._take(1)[0]:
            low = self.fields(np.array([k]))
            k = (1 << k) | int(low[0])
        return k

    def close(self) -> None:
        """Refuses bits that are left over."""
        if self.at != self.bits.size:
            raise ValueError(
                f"{self.bits.size - self.at} bits are left over: a code of another "
                "message"
            )
