"""The sum of a cohort's codes, of which the server sees masked ones alone.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", ePrint 2017/281; on a sparse graph: Bell et al. 2020, ePrint 2020/704. Client
i with neighbours N(i) sends, modulo 2^bits,

    y_i = x_i + PRG(b_i) + sum_{j in N(i), j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)

and has given its neighbours shares of b_i and of its private key. Of clients whose y_i
arrived the server is told b_i, of the others the private key, and never both.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.secure.agreement import KEY, KeyPair, agreed_seed, key_pair, mask
from fedjax_fm.secure.fixed_point import WORD
from fedjax_fm.secure.neighbours import neighbours
from fedjax_fm.secure.shamir import rebuilt, split


class TooFew(ValueError):
    """Too few neighbours of a client answered; the round is given up."""


class Cohort(NamedTuple):
    """What has been agreed on before anything is sent.

    Attributes:
      neighbours: i64[k] of each client.
      keys: pair of each client.
      selves: the seed b_i of each client, 32 bytes.
      shares: for each client, {neighbour: (share of b_i, share of the private key)}.
      thresholds: shares of a client that give its secrets.
      bits: numbers are modulo 2^bits.
    """

    neighbours: list[np.ndarray]
    keys: list[KeyPair]
    selves: list[bytes]
    shares: list[dict[int, tuple[int, int]]]
    thresholds: list[int]
    bits: int


def agreed(
    n_clients: int,
    *,
    bits: int = WORD,
    degree: int | None = None,
    threshold: float = 2 / 3,
    seed: int = 0,
) -> Cohort:
    """Keys, seeds and shares of a cohort.

    Args:
      n_clients: m, at least 3.
      bits: of the numbers, 1 to 32; those of the sum, `FixedPoint.bits`.
      degree: neighbours of a client, even; None: all others.
      threshold: share of a client's neighbours who have to answer, above a half, so
        that two halves cannot be told different things; at most 1.
      seed: of keys, seeds and graph: a simulation, whose secrets are none.

    Returns:
      What `masked` and `unmasked_sum` are given.

    Raises:
      TypeError, ValueError: sizes out of bounds.
      ImportError: `cryptography` is not installed.

    References:
      Bonawitz et al. 2017, ePrint 2017/281, figure 4, rounds 0 and 1.

    Example:
      >>> cohort = agreed(5, bits=26)
      >>> [len(own) for own in cohort.neighbours], cohort.thresholds
      ([4, 4, 4, 4, 4], [3, 3, 3, 3, 3])
    """
    checks.whole("n_clients", n_clients, least=3)
    checks.whole("bits", bits, least=1, most=WORD)
    checks.real("threshold", threshold, above=0.5, most=1)
    checks.whole("seed", seed, least=0)
    near = neighbours(n_clients, degree, seed)
    random = np.random.default_rng([seed, 0x5EC])
    keys = [key_pair(random.bytes(KEY)) for _ in range(n_clients)]
    selves = [random.bytes(KEY) for _ in range(n_clients)]
    thresholds = [int(np.ceil(threshold * len(own))) for own in near]
    shares = []
    for k, own in enumerate(near):
        how = (len(own), thresholds[k], random)
        sides = split(selves[k], *how), split(keys[k].private, *how)
        shares.append(
            {int(j): (sides[0][i], sides[1][i]) for i, j in enumerate(own, start=1)}
        )
    return Cohort(
        neighbours=near,
        keys=keys,
        selves=selves,
        shares=shares,
        thresholds=thresholds,
        bits=bits,
    )


def masked(codes: Any, client: int, cohort: Cohort) -> np.ndarray:
    """What a client sends: its codes behind its own mask and those with neighbours.

    Args:
      codes: u32[d].
      client: its number in the cohort.
      cohort: of `agreed`.

    Returns:
      u32[d], below 2^bits; uniform for whoever does not know the masks.

    References:
      Bonawitz et al. 2017, ePrint 2017/281, figure 4, round 2.
    """
    found = np.array(codes, np.uint32)
    found = found + mask(cohort.selves[client], len(found))
    mine = cohort.keys[client].private
    for other in cohort.neighbours[client]:
        seed = agreed_seed(mine, cohort.keys[other].public)
        common = mask(seed, len(found))
        found = found + common if other > client else found - common
    return found & _ones(cohort.bits)


def unmasked_sum(
    sent: Sequence[np.ndarray | None], cohort: Cohort, answered: Any = None
) -> np.ndarray:
    """The sum of the codes behind what has arrived.

    Args:
      sent: u32[d] of each client, from `masked`; None of those that dropped out.
      cohort: of `agreed`.
      answered: bool[m], whose shares the server is given afterwards; None: of all whose
        masked codes arrived. Others' answers do not count.

    Returns:
      u32[d], the sum modulo 2^bits over those that arrived.

    Raises:
      TooFew: fewer neighbours of a client answered than its threshold asks for; nothing
        is revealed.
      ValueError: nothing arrived, or not one entry a client.

    References:
      Bonawitz et al. 2017, ePrint 2017/281, figure 4, round 4.

    Example:
      >>> cohort, codes = agreed(5), np.arange(10, dtype=np.uint32).reshape(5, 2)
      >>> sent = [masked(row, client, cohort) for client, row in enumerate(codes)]
      >>> sent[3] = None  # it drops out, and its masks stay in what the others sent
      >>> unmasked_sum(sent, cohort).tolist()
      [14, 18]
    """
    m = len(cohort.keys)
    arrived = np.array([one is not None for one in sent], bool)
    if len(sent) != m or not arrived.any():
        raise ValueError(
            f"expected what arrived of each of {m} clients, at least one, got "
            f"{len(sent)} entries and {int(arrived.sum())} arrivals"
        )
    answers = arrived if answered is None else arrived & np.asarray(answered, bool)
    some = [np.asarray(one, np.uint32) for one in sent if one is not None]
    total = np.stack(some).sum(axis=0, dtype=np.uint32)
    needed = [k for k in range(m) if arrived[k] or arrived[cohort.neighbours[k]].any()]
    given = {k: _given(k, cohort, answers) for k in needed}
    for k, shares in given.items():
        if arrived[k]:
            own = rebuilt({i: pair[0] for i, pair in shares.items()})
            total = total - mask(own, len(total))
        else:
            private = rebuilt({i: pair[1] for i, pair in shares.items()})
            total = total - _left_over(k, private, cohort, arrived, len(total))
    return total & _ones(cohort.bits)


def _given(
    client: int, cohort: Cohort, answers: np.ndarray
) -> dict[int, tuple[int, int]]:
    """The shares of a client's secrets that its neighbours have answered with."""
    numbers = {int(j): i for i, j in enumerate(cohort.neighbours[client], start=1)}
    found = {
        numbers[j]: pair for j, pair in cohort.shares[client].items() if answers[j]
    }
    least = cohort.thresholds[client]
    if len(found) < least:
        raise TooFew(
            f"of client {client} {len(found)} of {len(numbers)} neighbours answered, and "
            f"{least} are needed: the round is given up"
        )
    return found


def _left_over(
    dropped: int, private: bytes, cohort: Cohort, arrived: np.ndarray, n_words: int
) -> np.ndarray:
    """The masks that a client's neighbours have added for it, which nobody takes off."""
    total = np.zeros(n_words, np.uint32)
    for other in cohort.neighbours[dropped]:
        if arrived[other]:
            common = mask(agreed_seed(private, cohort.keys[other].public), n_words)
            total = total + common if dropped > other else total - common
    return total


def _ones(bits: int) -> np.uint32:
    return np.uint32(2**bits - 1)
