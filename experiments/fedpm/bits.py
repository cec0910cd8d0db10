"""What a mask costs on the wire, by the laws that a receiver may know."""

import math

import numpy as np

from fedjax_fm.channels.range_coder import range_decode, range_encode

MODEL_BITS = 32  # for a law that has to be sent


def entropy(flags: np.ndarray) -> float:
    """N H2(share of ones), bits."""
    n, ones = flags.size, int(flags.sum())
    return sum(count * math.log2(n / count) for count in (ones, n - ones) if count)


def coded(flags: np.ndarray, counts: tuple[int, int] | None = None) -> int:
    """Bits that the arithmetic coder writes for bool[n], without the model.

    Read again and compared.

    Args:
      flags: what is sent.
      counts: law of (0, 1) that the receiver knows; default the string's own, which
        then has to be sent.
    """
    counts = (
        (flags.size - int(flags.sum()), int(flags.sum())) if counts is None else counts
    )
    message = range_encode(flags.astype(int), np.array(counts))
    if not np.array_equal(range_decode(message, np.array(counts), flags.size), flags):
        raise AssertionError("the arithmetic coder lost a mask")
    return message.n_bits


def bits_of(
    mask: dict[str, np.ndarray], theta: dict[str, np.ndarray]
) -> dict[str, float]:
    """Bits per parameter of one upload.

    Args:
      mask: bool leaves, what was sent.
      theta: their probabilities, which server and client both hold: for `coded given
        theta` there is one law for each of the few values that a mean of masks has, and
        no model is sent.
    """
    flags, p = (
        np.concatenate([tree[name].ravel() for name in sorted(tree)])
        for tree in (mask, theta)
    )
    p = np.round(p, 4)  # equal means that were summed in another order
    layers = [leaf.ravel() for leaf in mask.values()]
    given = 0
    for value in np.unique(p):
        ones = min(max(round(float(value) * 2**20), 1), 2**20 - 1)
        given += coded(flags[p == value], (2**20 - ones, ones))
    bits = {
        "entropy": entropy(flags) + MODEL_BITS,
        "coded": coded(flags) + MODEL_BITS,
        "entropy by layer": sum(map(entropy, layers)) + MODEL_BITS * len(layers),
        "coded by layer": sum(map(coded, layers)) + MODEL_BITS * len(layers),
        "coded given theta": given,
    }
    return {name: value / flags.size for name, value in bits.items()}
