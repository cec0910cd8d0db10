"""NNADQ, the quantiser of FedOBD: as many levels a tensor as its range deserves."""

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
    """One tensor: bit planes, of which the first `width` travel, and three scalars."""

    planes: Rows  # u8[MAX_BITS + 1, ceil(n / 8)]
    norm: jax.Array  # f32[]
    offset: jax.Array  # f32[]
    level: jax.Array  # u32[]; tells how many planes there are
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
    """Each leaf rounded to 2 s + 1 levels around the middle of its range, s =
    floor(max(1, sqrt(norm b ln 4 / weight))).

    Deterministic, hence biased; error of an entry at most norm / (2 s), norm half the
    leaf's range. A constant leaf arrives exactly; weight -> 0 is lossless up to 2^-23
    of the range (s is at most 2^22 - 1). Bits, which the data decide: per leaf 1 +
    ceil(log2(s + 1)) an entry, each plane in whole bytes, and 96 for norm, offset and
    s; `bits` is a u32[].

    Args:
      weight: price of a bit against error; 1e-3 and 1e-4 in the authors' experiments.

    References:
      Chen et al., FedOBD, 2023, arXiv 2208.05174, section 3.3; cyyever/torch_algorithm.
    """
    weight = checked_real("weight", weight, above=0)

    def encode_leaf(x, dtype):
        codes, norm, offset, level = nnadq_encode(
            x, weight, 8 * jnp.dtype(dtype).itemsize
        )
        planes = to_planes(codes, MAX_BITS + 1)
        return Levels(
            Rows(planes, nnadq_width(level).astype(jnp.int32)),
            norm,
            offset,
            level,
            x.shape[0],
        )

    def decode_leaf(sent):
        return nnadq_decode(sent.codes(), sent.norm, sent.offset, sent.level)

    def encode(state, tree, key):
        form = form_of(tree, "nnadq", rows=False)
        vector, start, side = flatten(tree, form), 0, []
        for leaf in form.leaves:
            if leaf.kind == "float":
                side.append(
                    encode_leaf(vector.x[start : start + leaf.size], leaf.dtype)
                )
                start += leaf.size
        return Payload((), tuple(side), ("nnadq", weight, form), vector.rest), state

    def decode(payload):
        form = opened(payload, "nnadq", weight)
        x = jnp.concatenate([decode_leaf(sent) for sent in payload.side])
        return unflatten(x, form, payload.rest, nearest=True)

    return Channel(
        init=lambda shapes: (), encode=encode, decode=decode, bits=payload_bits
    )
