"""Clients' keys against plain HMAC, and the server's answers against one place."""

import hashlib
import hmac
import subprocess
import sys

import numpy as np
import pytest
from planted_copies import SPEECHES, planted

from fedjax_fm.datasets.quality import MinHash, band_keys, keep_one, near_duplicates

SALT = b"of all the clients"


def dealt(texts, n_clients, seed=0):
    """The texts of each client, and their numbers."""
    owners = np.random.default_rng(seed).integers(0, n_clients, len(texts))
    numbers = [np.flatnonzero(owners == k) for k in range(n_clients)]
    return [[texts[i] for i in own] for own in numbers], numbers


def test_keys_are_those_of_hmac():
    minhash = MinHash(bands=4, rows=3)
    signatures = minhash.signatures(SPEECHES[:3]).astype("<u8")
    found = band_keys(SPEECHES[:3], SALT, minhash)
    for row in range(3):
        for band in range(4):
            hashes = signatures[row, 3 * band : 3 * band + 3].tobytes()
            message = band.to_bytes(4, "little") + hashes
            digest = hmac.new(SALT, message, hashlib.sha256).digest()
            assert int(found[row, band]) == int.from_bytes(digest[:8], "little")


def test_one_salt_agrees_in_another_process_and_another_salt_never():
    code = (
        "from fedjax_fm.datasets.quality import band_keys;"
        f"print(band_keys([{SPEECHES[0]!r}], {SALT!r}).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    own = band_keys(SPEECHES[:1], SALT)
    assert done.stdout.decode().strip() == str(own.tolist())
    other = band_keys(SPEECHES[:200], b"of some other clients")
    assert not np.isin(other, band_keys(SPEECHES[:200], SALT)).any()


@pytest.mark.parametrize("n_clients", [1, 2, 7])
def test_one_of_each_group_stays_as_in_one_place(n_clients):
    texts, _ = planted(changed=2)
    clients, numbers = dealt(texts, n_clients)
    found = keep_one([band_keys(own, SALT) for own in clients])
    order = np.concatenate(numbers)
    central = near_duplicates([texts[k] for k in order])
    assert np.array_equal(found.first, central.first)
    stays = np.concatenate(found.stays)
    for group in np.unique(central.first):
        assert stays[central.first == group].sum() == 1


def test_no_client_always_loses():
    copies = [SPEECHES[:300]] * 3
    found = keep_one([band_keys(own, SALT) for own in copies])
    shares = np.array([one.mean() for one in found.stays])
    n_groups = len(near_duplicates(SPEECHES[:300]).kept)
    assert sum(one.sum() for one in found.stays) == n_groups
    error = np.sqrt(1 / 3 * 2 / 3 / n_groups)
    assert np.all(np.abs(shares * 300 / n_groups - 1 / 3) < 4 * error)
    again = keep_one([band_keys(own, SALT) for own in copies], seed=1)
    assert any(
        not np.array_equal(a, b) for a, b in zip(found.stays, again.stays, strict=True)
    )


def test_the_order_of_a_clients_texts_does_not_change_who_keeps():
    texts, _ = planted(changed=1)
    clients, _ = dealt(texts, 3)
    turned = [own[::-1] for own in clients]
    one = keep_one([band_keys(own, SALT) for own in clients])
    other = keep_one([band_keys(own, SALT) for own in turned])
    assert [a.sum() for a in one.stays] == [b.sum() for b in other.stays]


def test_the_holder_of_the_test_set_keeps_all_of_it():
    test = SPEECHES[:20]
    clients = [test[:5] + SPEECHES[40:50], test[5:8], []]
    keys = [band_keys(own, SALT) for own in [*clients, test]]
    found = keep_one(keys, first=[3])
    assert found.stays[3].all()
    assert found.stays[0].tolist() == [False] * 5 + [True] * 10
    assert not found.stays[1].any()
    assert len(found.stays[2]) == 0


def test_bytes_are_those_of_the_buffers():
    keys = [band_keys(SPEECHES[:n], SALT) for n in (9, 1)]
    found = keep_one(keys)
    assert found.uplink_bytes == 10 * 14 * 8
    assert found.downlink_bytes == 2 + 1
    narrow = keep_one([band_keys(SPEECHES[:9], SALT, MinHash(bands=1, rows=4))])
    assert narrow.uplink_bytes == 9 * 8


def test_bad_values():
    keys = band_keys(SPEECHES[:2], SALT)
    with pytest.raises(ValueError, match="at least 16 bytes, got 5 bytes"):
        band_keys(["text"], b"short")
    with pytest.raises(ValueError, match="at least 16 bytes"):
        band_keys(["text"], "a salt that is text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected several texts"):
        band_keys("text", SALT)
    with pytest.raises(ValueError, match="all of as many bands"):
        keep_one([keys, keys[:, :3]])
    with pytest.raises(ValueError, match="at least one client"):
        keep_one([])
    with pytest.raises(ValueError, match="first"):
        keep_one([keys], first=[1])
    with pytest.raises(ValueError, match="seed"):
        keep_one([keys], seed=-1)
