"""Bytes of secure aggregation, of one client in one round."""

from typing import NamedTuple

from fedjax_fm import checks
from fedjax_fm.secure.agreement import KEY
from fedjax_fm.secure.shamir import SHARE

TAG = 16  # bytes that a cipher adds to what the server passes on


class Bill(NamedTuple):
    """Bytes of one client in one round.

    Attributes:
      numbers: its masked numbers, packed.
      uplink: of all that it sends: keys, shares, masked numbers, answers.
      downlink: of the protocol that it is sent, without the next model: its neighbours'
        keys and shares.
      expansion: `uplink` against its numbers in f32.
    """

    numbers: int
    uplink: int
    downlink: int
    expansion: float


def bill(n_numbers: int, n_neighbours: int, bits: int) -> Bill:
    """Counts a client's bytes.

        up:    2 public keys, 2 shares + tag a neighbour, d bits / 8, 1 share a neighbour
        down:  2 public keys a neighbour, 2 shares + tag a neighbour

    The second pair of keys and the tag are those of the cipher behind which the server
    passes shares on: they are counted, and the simulation passes shares in the open.

    Args:
      n_numbers: d, of the upload.
      n_neighbours: k, of a client.
      bits: of a masked number, `FixedPoint.bits`.

    Raises:
      TypeError, ValueError: a number out of bounds.

    Example:
      >>> found = bill(n_numbers=100_000, n_neighbours=20, bits=26)
      >>> found.numbers, found.uplink, round(found.expansion, 3)
      (325000, 327364, 0.818)
    """
    checks.whole("n_numbers", n_numbers, least=1)
    checks.whole("n_neighbours", n_neighbours, least=1)
    checks.whole("bits", bits, least=1, most=32)
    numbers = -(-n_numbers * bits // 8)
    passed = n_neighbours * (2 * SHARE + TAG)
    uplink = 2 * KEY + passed + numbers + n_neighbours * SHARE
    return Bill(
        numbers=numbers,
        uplink=uplink,
        downlink=n_neighbours * 2 * KEY + passed,
        expansion=uplink / (4 * n_numbers),
    )
