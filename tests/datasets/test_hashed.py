"""Draws and splits that depend on keys alone."""

import collections
import hashlib
import math
import random

import numpy as np
import pytest

from fedjax_fm.datasets import split_of, splits_of
from fedjax_fm.datasets.draws import Draws
from fedjax_fm.datasets.hashed import choice


def test_a_split_is_the_place_of_a_hash():
    for key in map(str, range(200)):
        point = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64
        expected = "train" if point < 0.8 else "validation" if point < 0.9 else "test"
        assert split_of(key) == expected


def test_shares_are_kept_and_keys_stay():
    keys = [f"key {i}" for i in range(20_000)]
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    found = splits_of(keys, shares)
    for name, share in shares.items():
        error = math.sqrt(share * (1 - share) / len(keys))
        assert abs(np.mean(found == name) - share) < 4 * error
    assert splits_of(keys[::-1], shares).tolist() == found[::-1].tolist()
    assert splits_of(keys[5:9], shares).tolist() == found[5:9].tolist()


@pytest.mark.parametrize(
    "shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 1, "b": 0}]
)
def test_shares_that_make_no_sense(shares):
    with pytest.raises(ValueError, match="expected shares above 0 that sum to 1"):
        split_of("key", shares)


def test_a_choice_does_not_depend_on_the_order():
    items = list(range(30))
    assert choice("a", items, 5) == choice("a", items[::-1], 5)
    assert choice("a", items, 5) != choice("b", items, 5)
    assert sorted(choice("a", items, 99)) == items


def test_draws_are_those_of_pythons_generator():
    draws, reference = Draws("a key"), random.Random("a key")
    expected = [3 + math.floor(reference.random() * 8) for _ in range(500)]
    assert [draws.integer(3, 10) for _ in range(500)] == expected
    assert set(expected) == set(range(3, 11))


def test_all_orders_are_alike():
    counts = collections.Counter(
        tuple(Draws(f"key {i}").shuffled("abc")) for i in range(6000)
    )
    assert len(counts) == 6
    assert all(abs(count - 1000) < 150 for count in counts.values())
    draws = Draws("a")
    assert all(len(set(draws.some(range(5), 3))) == 3 for _ in range(100))
