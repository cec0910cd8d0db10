"""Near duplicates across clients, of which the server sees keys and no text.

The clients share a salt that the server does not know. Each sends, for each of its texts,
one key a band: HMAC-SHA-256 of the band's number and its hashes under the salt, cut to 64
bits. Equal bands have equal keys, and without the salt nobody can compute the keys of a
text that they guess. The server joins texts with an equal key and tells each client
which of its texts stay.

What leaks all the same: how many texts a client has, and which of them are near
duplicates of which texts of other clients. A client that works together with the server
gives the salt away, and with it the protection of guessable texts.
"""

import hashlib
import hmac
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.datasets.quality.minhash import MinHash, check_texts
from fedjax_fm.datasets.quality.near import chained, joined

KEY_BYTES = 8
LEAST_SALT = 16  # bytes


class AcrossClients(NamedTuple):
    """Which texts stay where several clients have them, and what was sent for it.

    Attributes:
      stays: bool[n_k] of each client.
      first: i64[n], the lowest row that each is joined with; rows of all clients one
        after the other.
      uplink_bytes: of the keys of all clients.
      downlink_bytes: of the server's answers, one bit a text.
    """

    stays: list[np.ndarray]
    first: np.ndarray
    uplink_bytes: int
    downlink_bytes: int


def band_keys(
    texts: Sequence[str], salt: bytes, minhash: MinHash | None = None
) -> np.ndarray:
    """What a client sends of its texts: one key a band.

    Args:
      texts: of one client.
      salt: 16 bytes or more that all clients share and the server does not know, such
        as `secrets.token_bytes(32)`.
      minhash: the same at all clients. Default: `MinHash()`.

    Returns:
      u64[texts, b], 8 b bytes a text.

    Raises:
      TypeError, ValueError: no texts, or a salt that is too short.

    Example:
      >>> keys = band_keys(["my kingdom for a horse"], b"shared by clients")
      >>> keys.shape, keys.nbytes
      ((1, 14), 112)
      >>> other = band_keys(["my kingdom for a horse"], b"another salt of theirs")
      >>> bool((keys == other).any())
      False
    """
    check_texts(texts)
    if not isinstance(salt, bytes) or len(salt) < LEAST_SALT:
        got = f"{len(salt)} bytes" if isinstance(salt, bytes) else checks.shown(salt)
        raise ValueError(
            f"expected a salt of at least {LEAST_SALT} bytes, got {got}; write "
            "secrets.token_bytes(32)"
        )
    how = MinHash() if minhash is None else minhash
    checks.instance("minhash", how, MinHash, "write quality.MinHash()")
    parts = how.signatures(texts).reshape(-1, how.bands, how.rows)
    keys = np.empty(parts.shape[:2], np.uint64)
    for row, own in enumerate(parts.astype("<u8")):
        for band, hashes in enumerate(own):
            keys[row, band] = _key(salt, band, hashes.tobytes())
    return keys


def _key(salt: bytes, band: int, hashes: bytes) -> int:
    digest = hmac.digest(salt, band.to_bytes(4, "little") + hashes, "sha256")
    return int.from_bytes(digest[:KEY_BYTES], "little")


def keep_one(
    keys: Sequence[np.ndarray], *, seed: int = 0, first: Collection[int] = ()
) -> AcrossClients:
    """What the server answers: of near duplicates one text stays, whoever has them.

    For each group of joined texts a client is drawn that keeps its first one, so that no
    client always loses. The draw depends on the group and the seed alone.

    Args:
      keys: u64[n_k, b] of each client, of `band_keys`.
      seed: of the draws.
      first: clients that keep all of theirs, whoever else has them, such as the holder
        of the test set: what others have of it goes.

    Returns:
      The answers, with the bytes of both directions.

    Raises:
      TypeError, ValueError: keys of other shapes, or a client that is not there.

    References:
      Lee et al. 2022, arXiv 2107.06499, section 5 (the copy of the test set stays).

    Example:
      >>> salt = b"shared by clients"
      >>> texts = [["all the world's a stage"], ["All the world's a stage!", "exeunt"]]
      >>> found = keep_one([band_keys(own, salt) for own in texts], first=[0])
      >>> [one.tolist() for one in found.stays]
      [[True], [False, True]]
      >>> found.uplink_bytes, found.downlink_bytes
      (336, 2)
    """
    checks.whole("seed", seed, least=0)
    received, sent = _received(keys)
    owners = np.repeat(np.arange(len(received)), [len(own) for own in received])
    privileged = _privileged(first, len(received))
    rows = np.concatenate(received)
    groups = joined(len(rows), chained(rows))
    stays = np.ones(len(rows), bool)
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    for group in np.split(order, cuts):
        if len(group) > 1:
            stays[group] = _wins(group, rows, owners, privileged, seed)
    cuts = np.cumsum([len(own) for own in received])[:-1]
    answers = np.split(stays, cuts)
    return AcrossClients(
        stays=answers,
        first=groups,
        uplink_bytes=sent,
        downlink_bytes=sum(np.packbits(one).nbytes for one in answers),
    )


def _received(keys: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """The clients' keys out of the buffers that they send, and the bytes of those."""
    shapes = [np.shape(own) for own in keys]
    widths = {shape[1:] for shape in shapes}
    if not shapes or len(widths) > 1 or len(shapes[0]) != 2:
        raise ValueError(
            "expected keys u64[n_k, b] of at least one client, all of as many bands, "
            f"got shapes {[list(shape) for shape in shapes]}"
        )
    buffers = [np.asarray(own, "<u8").tobytes() for own in keys]
    received = [
        np.frombuffer(buffer, "<u8").reshape(shape)
        for buffer, shape in zip(buffers, shapes, strict=True)
    ]
    return received, sum(map(len, buffers))


def _privileged(first: Collection[int], n_clients: int) -> np.ndarray:
    """bool[clients]."""
    marked = np.zeros(n_clients, bool)
    for client in first:
        checks.whole("first", client, least=0, most=n_clients - 1)
        marked[client] = True
    return marked


def _wins(
    group: np.ndarray,
    rows: np.ndarray,
    owners: np.ndarray,
    privileged: np.ndarray,
    seed: int,
) -> np.ndarray:
    """bool[group]: which rows of a group stay."""
    kept = privileged[owners[group]]
    if kept.any():
        return kept
    name = rows[group].min().tobytes()

    def draw(row: int) -> bytes:
        client = int(owners[row])
        drawn = name + client.to_bytes(8, "little") + seed.to_bytes(8, "little")
        return hashlib.blake2b(drawn, digest_size=16).digest()

    winner = min(group.tolist(), key=draw)  # of a client's own rows the first
    return group == winner
