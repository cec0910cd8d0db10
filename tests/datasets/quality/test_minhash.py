"""Signatures against plain integers, and their collisions against the formulas."""

import hashlib
import math

import numpy as np
import pytest
from bad_values import BAD
from hypothesis import given
from hypothesis import strategies as st

from fedjax_fm.datasets.quality import MinHash, jaccard, normalised, shingles
from fedjax_fm.datasets.quality.minhash import PRIME, affine, similarities

WORDS = st.integers(0, PRIME - 1)


@given(WORDS, WORDS, WORDS)
def test_the_hash_is_exact(x, scale, shift):
    found = affine(np.array([x], np.uint64), np.uint64(scale), np.uint64(shift))
    assert int(found[0]) == (scale * x + shift) % PRIME


@pytest.mark.parametrize("x", [0, 1, 2**31 - 1, 2**31, PRIME - 1])
@pytest.mark.parametrize("scale", [1, 2**30, 2**31, PRIME - 1])
def test_the_hash_is_exact_at_the_ends(x, scale):
    found = affine(np.array([x], np.uint64), np.uint64(scale), np.uint64(PRIME - 1))
    assert int(found[0]) == (scale * x + PRIME - 1) % PRIME


def test_signatures_are_those_of_a_plain_loop():
    minhash = MinHash(bands=3, rows=2, seed=7)
    sets = [{"a"}, {"a", "b", "c"}, {f"member {i}" for i in range(40)}]
    draw = np.random.default_rng([7, 0x317]).integers
    scales = [int(x) for x in draw(1, PRIME, 6, dtype=np.uint64)]
    shifts = [int(x) for x in draw(0, PRIME, 6, dtype=np.uint64)]

    def hashed(member):
        salt = (7).to_bytes(16, "little")
        digest = hashlib.blake2b(member.encode(), digest_size=8, salt=salt).digest()
        return int.from_bytes(digest, "little") % PRIME

    expected = [
        [
            min((a * hashed(x) + c) % PRIME for x in members)
            for a, c in zip(scales, shifts, strict=True)
        ]
        for members in sets
    ]
    assert minhash.signatures_of_sets(sets).tolist() == expected


def pairs_of(similarity, n, union=100, seed=0):
    """Random pairs of sets whose Jaccard similarity is exactly this."""
    common, found = round(similarity * union), []
    for k in range(n):
        members = [f"{seed} {k} {x}" for x in range(union)]
        cut = common + (union - common) // 2
        both = set(members[:common])
        found += [both | set(members[common:cut]), both | set(members[cut:])]
        assert jaccard(frozenset(found[-2]), frozenset(found[-1])) == similarity
    return found


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.9])
def test_the_estimate_is_unbiased_and_has_its_variance(similarity):
    sets, n_hashes, n_seeds = pairs_of(similarity, 1), 112, 300
    found = np.array(
        [
            similarities(*MinHash(seed=seed).signatures_of_sets(sets))
            for seed in range(n_seeds)
        ]
    )
    variance = similarity * (1 - similarity) / n_hashes
    assert abs(found.mean() - similarity) < 3 * math.sqrt(variance / n_seeds)
    # Of a normal sample the variance's own deviation is sqrt(2 / n) of it.
    assert abs(found.var() / variance - 1) < 4 * math.sqrt(2 / n_seeds)


@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (1, 1), (20, 5)])
@pytest.mark.parametrize("similarity", [0.5, 0.72, 0.8, 0.9])
def test_the_curve_of_collisions(bands, rows, similarity):
    minhash, n = MinHash(bands=bands, rows=rows), 1000
    made = minhash.signatures_of_sets(pairs_of(similarity, n, seed=rows))
    parts = made.reshape(n, 2, bands, rows)
    share = (parts[:, 0] == parts[:, 1]).all(axis=-1).any(axis=-1).mean()
    expected = 1 - (1 - similarity**rows) ** bands
    assert minhash.probability(similarity) == pytest.approx(expected)
    error = math.sqrt(max(expected * (1 - expected), 1 / n) / n)
    assert abs(share - expected) < 3 * error


def test_the_known_points_of_fineweb():
    assert MinHash().threshold == pytest.approx(0.72, abs=0.005)
    assert MinHash().probability(0.8) == pytest.approx(0.924, abs=0.0005)
    assert MinHash(bands=1, rows=1).probability(0.3) == pytest.approx(0.3)
    assert MinHash().probability(0) == 0
    assert MinHash().probability(1) == 1


def test_another_seed_is_another_signature_and_the_same_seed_the_same():
    texts = ["the quality of mercy is not strained, it droppeth as the gentle rain"]
    one, again, other = (MinHash(seed=s).signatures(texts) for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not (one == other).any()


def test_no_texts_and_empty_ones():
    assert MinHash().signatures([]).shape == (0, 112)
    assert similarities(*MinHash().signatures(["", "?!"])) == 1.0
    with pytest.raises(ValueError, match="got an empty one, number 1"):
        MinHash().signatures_of_sets([{"a"}, set()])


@pytest.mark.parametrize("name", ["bands", "rows", "n_words", "seed"])
@pytest.mark.parametrize("value", [*BAD["whole"], -1])
def test_bad_numbers(name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        MinHash(**{name: value})


def test_bad_texts():
    with pytest.raises(TypeError, match="expected several texts"):
        MinHash().signatures("one text")
    with pytest.raises(TypeError, match="expected text"):
        MinHash().signatures([b"bytes"])
    with pytest.raises(TypeError, match="keep_digits"):
        MinHash(keep_digits=1)
    with pytest.raises(ValueError, match="similarity"):
        MinHash().probability(1.5)
    with pytest.raises(ValueError, match="signatures of one MinHash"):
        similarities(np.zeros(3), np.zeros(4))


# Shingles


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalised(normalised(text)) == normalised(text)


@given(st.text(alphabet="ab 1,.\n", max_size=60), st.integers(1, 4))
def test_shingles_are_those_of_a_plain_loop(text, n):
    words = text.replace(",", " ").replace(".", " ").split()
    expected = {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}
    assert shingles(text, n) == (expected or {" ".join(words)})


def test_scripts_without_case_stay_whole():
    assert normalised("नमस्ते, दुनिया!") == "नमस्ते दुनिया"
    assert normalised("Café") == normalised("Café")


def test_two_empty_sets_have_no_similarity():
    with pytest.raises(ValueError, match="two empty ones"):
        jaccard(frozenset(), frozenset())
