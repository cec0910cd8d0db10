"""What a mask costs on the wire, for several models that a receiver may know."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import study
from fedjax_fm.channels import identity
from fedjax_fm.channels.range_coder import range_decode, range_encode
from fedjax_fm.types import Channel

MODEL_BITS = 32  # for a law that has to be sent


def entropy(flags: np.ndarray) -> float:
    """N H2(share of ones), bits.

    Args:
      flags: bool[N].
    """
    n, ones = flags.size, int(flags.sum())
    return sum(count * math.log2(n / count) for count in (ones, n - ones) if count)


def coded(flags: np.ndarray, counts: tuple[int, int] | None = None) -> int:
    """Bits that the arithmetic coder writes, without its model.

    The message is decoded again and compared.

    Args:
      flags: bool[n], what is sent.
      counts: of zeros and ones, by which the receiver decodes; default: those of
        `flags`, which then have to be sent.
    """
    if counts is None:
        ones = int(flags.sum())
        counts = (flags.size - ones, ones)
    model = np.array(counts)
    message = range_encode(flags.astype(int), model)
    decoded = range_decode(message, model, flags.size)
    if not np.array_equal(decoded, flags):
        raise AssertionError("the arithmetic coder lost a mask")
    return message.n_bits


def bits_of(
    mask: dict[str, np.ndarray], theta: dict[str, np.ndarray]
) -> dict[str, float]:
    """Bits per parameter of one upload.

    Args:
      mask: bool leaves, what was sent.
      theta: their probabilities, which server and client both hold. `coded given theta`
        codes each of the few values of a mean of masks by itself, and no model is sent.

    Returns:
      {name: bits per parameter}.
    """
    names = sorted(mask)
    flags = np.concatenate([mask[name].ravel() for name in names])
    p = np.concatenate([theta[name].ravel() for name in names])
    p = np.round(p, 4)  # equal means that were summed in another order
    layers = [leaf.ravel() for leaf in mask.values()]
    given = 0
    for value in np.unique(p):
        ones = round(float(value) * 2**20)
        ones = min(max(ones, 1), 2**20 - 1)
        given += coded(flags[p == value], (2**20 - ones, ones))
    models = MODEL_BITS * len(layers)
    bits = {
        "entropy": entropy(flags) + MODEL_BITS,
        "coded": coded(flags) + MODEL_BITS,
        "entropy by layer": sum(entropy(layer) for layer in layers) + models,
        "coded by layer": sum(coded(layer) for layer in layers) + models,
        "coded given theta": given,
    }
    return {name: value / flags.size for name, value in bits.items()}


CODED_CLIENTS = 3  # whose uploads are written by the arithmetic coder


def remembering() -> Channel:
    """The identity, whose state of a client is the client's last upload."""
    plain = identity()
    return Channel(
        init=lambda shapes: jax.tree.map(
            lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes
        ),
        encode=lambda state, tree, key: (plain.encode((), tree, key)[0], tree),
        decode=plain.decode,
        bits=plain.bits,
    )


def bits_of_next_round(done: study.Simulated) -> dict[str, float]:
    """Bits that clients send in one more round; means over a few of its cohort."""
    theta = jax.tree.map(np.array, done.state.delta)
    old = jax.tree.map(np.array, done.state.carry.uplinks[0])
    after, _ = done.simulator.run(done.state, 1)
    new = jax.tree.map(np.array, after.carry.uplinks[0])
    changed = []
    for name, leaf in new.items():
        differs = (old[name] != leaf).reshape(len(leaf), -1)
        changed.append(differs.any(axis=1))
    cohort = np.flatnonzero(np.any(changed, axis=0))
    found = []
    for k in cohort[:CODED_CLIENTS]:
        upload = {name: leaf[k] for name, leaf in new.items()}
        found.append(bits_of(upload, theta))
    return {name: float(np.mean([bits[name] for bits in found])) for name in found[0]}
