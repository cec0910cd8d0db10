"""Channels: how a message is encoded for the wire, and how many bits that takes.

A channel is used for the uplink or the downlink of a simulator:

    Simulator(..., uplink=channels.error_feedback(channels.top_k(0.01)))

The receiver sees `decode(payload)` only. Two classes of lossy channels are told apart
in the docstrings, for a message x and what arrives of it, C(x):

    unbiased:     E C(x) = x,  E ||C(x) - x||^2 <= omega ||x||^2
    contractive:  ||C(x) - x||^2 <= (1 - delta) ||x||^2,  0 < delta <= 1

Contractive channels are biased in general: put `error_feedback` around them.
"""

from fedjax_fm.channels.anchored import Anchored, anchored, anchored_bits
from fedjax_fm.channels.bernoulli_mask import bernoulli_mask
from fedjax_fm.channels.block_dropout import block_dropout
from fedjax_fm.channels.block_formats import int_blocks, nf4
from fedjax_fm.channels.cast import cast
from fedjax_fm.channels.chain import chain
from fedjax_fm.channels.eden import drive, eden
from fedjax_fm.channels.error_feedback import error_feedback
from fedjax_fm.channels.identity import identity
from fedjax_fm.channels.laws import Contractive, Unbiased
from fedjax_fm.channels.layer_bits import (
    bit_widths,
    layer_bits,
    noise_energies,
    noise_that_costs,
    rounded,
)
from fedjax_fm.channels.lengths import Lengths, code_lengths
from fedjax_fm.channels.natural import natural
from fedjax_fm.channels.nnadq import nnadq
from fedjax_fm.channels.payload import Payload, payload_bits
from fedjax_fm.channels.per_leaf import per_leaf
from fedjax_fm.channels.quantize import quantize, ternary
from fedjax_fm.channels.random_k import random_k
from fedjax_fm.channels.sign import sign
from fedjax_fm.channels.threshold import threshold
from fedjax_fm.channels.top_k import top_k

__all__ = [
    "Anchored",
    "Contractive",
    "Lengths",
    "Payload",
    "Unbiased",
    "anchored",
    "anchored_bits",
    "bernoulli_mask",
    "bit_widths",
    "block_dropout",
    "cast",
    "chain",
    "code_lengths",
    "drive",
    "eden",
    "error_feedback",
    "identity",
    "int_blocks",
    "layer_bits",
    "natural",
    "nf4",
    "nnadq",
    "noise_energies",
    "noise_that_costs",
    "payload_bits",
    "per_leaf",
    "quantize",
    "random_k",
    "rounded",
    "sign",
    "ternary",
    "threshold",
    "top_k",
]
