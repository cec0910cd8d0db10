"""Shamir's shares: any `threshold` of them give the secret, fewer give nothing.

Shamir 1979, "How to Share a Secret". The secret is the value at 0 of a polynomial of
degree threshold - 1 with random coefficients modulo a prime; share i is its value at i.
"""

from collections.abc import Mapping

import numpy as np

from fedjax_fm import checks

PRIME = 2**257 - 93  # above every secret of 32 bytes
SECRET, SHARE = 32, 33  # bytes


def split(
    secret: bytes, n_shares: int, threshold: int, random: np.random.Generator
) -> dict[int, int]:
    """Makes shares of a secret.

    Args:
      secret: 32 bytes.
      n_shares: at least `threshold`.
      threshold: how many give the secret back, at least 1.
      random: draws the polynomial.

    Returns:
      {i: share}, i from 1 to `n_shares`.

    Raises:
      TypeError, ValueError: another length, or a threshold that no shares reach.

    Example:
      >>> random = np.random.default_rng(0)
      >>> shares = split(bytes(range(32)), 5, 3, random)
      >>> rebuilt({i: shares[i] for i in (5, 1, 2)}) == bytes(range(32))
      True
    """
    checks.whole("n_shares", n_shares, least=1)
    checks.whole("threshold", threshold, least=1, most=n_shares)
    if len(secret) != SECRET:
        raise ValueError(f"expected a secret of {SECRET} bytes, got {len(secret)}")
    polynomial = [int.from_bytes(secret, "little")]
    # 64 bits more than the prime has, so that the remainder is as good as uniform.
    polynomial += [
        int.from_bytes(random.bytes(SHARE + 8), "little") % PRIME
        for _ in range(threshold - 1)
    ]
    return {i: _value(polynomial, i) for i in range(1, n_shares + 1)}


def _value(polynomial: list[int], x: int) -> int:
    """By Horner's rule."""
    found = 0
    for coefficient in reversed(polynomial):
        found = (found * x + coefficient) % PRIME
    return found


def rebuilt(shares: Mapping[int, int]) -> bytes:
    """The secret, by Lagrange's polynomials at 0.

    Fewer shares than the threshold give another number, without a sign that they do:
    whoever asks counts them before.

    Args:
      shares: {i: share}, as many as the threshold or more.

    Returns:
      32 bytes.

    Raises:
      ValueError: shares of no secret of 32 bytes, such as too few.

    Example:
      >>> rebuilt({1: 7}) == (7).to_bytes(32, "little")
      True
    """
    total = 0
    for i, share in shares.items():
        above, below = 1, 1
        for j in shares:
            if j != i:
                above = above * j % PRIME
                below = below * (j - i) % PRIME
        total = (total + share * above * pow(below, -1, PRIME)) % PRIME
    if total >= 2 ** (8 * SECRET):
        raise ValueError(
            f"these {len(shares)} shares give no secret of {SECRET} bytes: they are too "
            "few, or of different secrets"
        )
    return total.to_bytes(SECRET, "little")
