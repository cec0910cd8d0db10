"""Secure aggregation: the server learns a cohort's sum, and no client's upload.

`secured` runs any method that averages on fixed-point numbers, as secure aggregation
adds them up. `agreed`, `masked` and `unmasked_sum` are the protocol itself on stacks of
codes, with keys by the package `cryptography` (the extra `secure`), clients that drop
out, and shares that bring their masks back. `bill` counts the bytes.
"""

from fedjax_fm.secure.agreement import KeyPair, agreed_seed, key_pair, mask
from fedjax_fm.secure.bill import Bill, bill
from fedjax_fm.secure.fixed_point import FixedPoint, decode, encode
from fedjax_fm.secure.method import secured
from fedjax_fm.secure.neighbours import neighbours
from fedjax_fm.secure.protocol import Cohort, TooFew, agreed, masked, unmasked_sum
from fedjax_fm.secure.shamir import rebuilt, split

__all__ = [
    "Bill",
    "Cohort",
    "FixedPoint",
    "KeyPair",
    "TooFew",
    "agreed",
    "agreed_seed",
    "bill",
    "decode",
    "encode",
    "key_pair",
    "mask",
    "masked",
    "neighbours",
    "rebuilt",
    "secured",
    "split",
    "unmasked_sum",
]
