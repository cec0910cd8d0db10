"""NNADQ, the quantiser of FedOBD: the range of a tensor decides its levels."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fedjax_fm.channels.arguments import checked_real
from fedjax_fm.channels.buffers import static
from fedjax_fm.channels.payload import Payload, payload_bits
from fedjax_fm.channels.vectors import flatten, form_of, opened, unflatten
from fedjax_fm.kernels import (
    from_planes,
    nnadq_decode,
    nnadq_encode,
    nnadq_width,
    to_planes,
)
from fedjax_fm.kernels.nnadq import MAX_BITS
from fedjax_fm.types import Channel, Rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Levels:
    """One tensor on the wire: bit planes and three scalars.

    Attributes:
      planes: u8[MAX_BITS + 1, ceil(n / 8)], of which the first ceil(log2(level + 1)) +
        1 travel.
      norm: f32[], half the range of the tensor.
      offset: f32[], its middle.
      level: u32[], levels on each side of the middle; tells how many planes there are.
      n: entries of the tensor.
    """

    planes: Rows
    norm: jax.Array
    offset: jax.Array
    level: jax.Array
    n: int = static()

    def codes(self) -> jax.Array:
        """u32[n]: sign in the lowest bit, magnitude above it."""
        if self.planes.values.shape != (MAX_BITS + 1, -(-self.n // 8)):
            raise ValueError(
                f"{self.n} codes take {MAX_BITS + 1} planes of {-(-self.n // 8)} "
                f"bytes, got a buffer of shape {self.planes.values.shape}: the "
                "payload is truncated or belongs to another shape"
            )
        return from_planes(self.planes.values, self.n)


def nnadq(weight: float = 1e-3) -> Channel:
    """Rounds each leaf to 2 s + 1 levels around the middle of its range.

        s = floor(max(1, sqrt(norm b ln 4 / weight))),  norm half the leaf's range,

    with b the bits of the leaf's type. Deterministic, hence biased; the error of an
    entry is at most norm / (2 s). A constant leaf arrives exactly; weight -> 0 is
    lossless up to 2^-23 of the range (s is at most 2^22 - 1).

    Bits, which depend on the data: 1 + ceil(log2(s + 1)) an entry, each bit plane of a
    leaf in whole bytes, and 96 a leaf for norm, offset and s. `bits` gives a u32[].

    Args:
      weight: price of a bit against error, above 0; 1e-3 and 1e-4 in the authors'
        experiments.

    Returns:
      A channel without state.

    Raises:
      ValueError: `weight` is not positive.
      TypeError: at the first message, `Rows` among the leaves.

    References:
      Chen et al., FedOBD, 2023, arXiv 2208.05174, section 3.3; the authors' code,
      github.com/cyyever/torch_algorithm.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.nnadq(weight=1.0)
      >>> tree = {"w": jnp.array([0.0, 0.1, 0.5, 1.0])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].round(3).tolist()
      [0.0, 0.125, 0.5, 1.0]
      >>> int(channel.bits(payload))
      128
    """
    weight = checked_real("weight", weight, above=0)

    def encode_leaf(x, dtype):
        n_bits = 8 * jnp.dtype(dtype).itemsize
        codes, norm, offset, level = nnadq_encode(x, weight, n_bits)
        planes = to_planes(codes, MAX_BITS + 1)
        width = nnadq_width(level).astype(jnp.int32)
        return Levels(
            planes=Rows(planes, width),
            norm=norm,
            offset=offset,
            level=level,
            n=x.shape[0],
        )

    def decode_leaf(sent):
        return nnadq_decode(sent.codes(), sent.norm, sent.offset, sent.level)

    def encode(state, tree, key):
        form = form_of(tree, "nnadq", rows=False)
        vector = flatten(tree, form)
        start, side = 0, []
        for leaf in form.leaves:
            if leaf.kind == "float":
                x = vector.x[start : start + leaf.size]
                side.append(encode_leaf(x, leaf.dtype))
                start += leaf.size
        return Payload((), tuple(side), ("nnadq", weight, form), vector.rest), state

    def decode(payload):
        form = opened(payload, "nnadq", weight)
        x = jnp.concatenate([decode_leaf(sent) for sent in payload.side])
        return unflatten(x, form, payload.rest, nearest=True)

    return Channel(
        init=lambda shapes: (), encode=encode, decode=decode, bits=payload_bits
    )
