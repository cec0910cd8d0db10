"""Reads a file of bytes from front to back."""

import struct

import numpy as np


class Cursor:
    """Numbers and bytes of a file, little-endian, one behind the other.

    Args:
      data: the file.

    Attributes:
      at: the byte that is read next.

    Example:
      >>> cursor = Cursor(bytes([2, 0, 65, 66]))
      >>> cursor.take("H"), cursor.raw(2)
      ((2,), b'AB')
    """

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, layout: str) -> tuple:
        """Numbers.

        Args:
          layout: as `struct` describes them.

        Raises:
          struct.error: there are not so many bytes left.
        """
        values = struct.unpack_from(f"<{layout}", self.data, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return values

    def array(self, dtype: str, n: int) -> np.ndarray:
        """The next n numbers.

        Args:
          dtype: of numpy.
          n: how many.

        Raises:
          ValueError: there are not so many left.
        """
        if n < 0:  # which NumPy takes for all that there are
            raise ValueError(f"a table of {n} numbers")
        found = np.frombuffer(self.data, dtype, n, self.at)
        self.at += found.nbytes
        return found

    def raw(self, n: int) -> bytes:
        """The next n bytes.

        Args:
          n: how many.

        Raises:
          ValueError: there are not so many left.
        """
        found = self.data[self.at : self.at + n]
        if len(found) != n:
            raise ValueError(f"{n} bytes wanted, {len(found)} left")
        self.at += n
        return found
