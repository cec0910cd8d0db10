"""Groups of near duplicates against brute force."""

import itertools

import numpy as np
import pytest
from planted_copies import SPEECHES, planted

from fedjax_fm.datasets.quality import MinHash, jaccard, near_duplicates


def brute_force(texts, minhash, verify=0.0):
    """Groups by a loop over all pairs, joined until nothing changes."""
    made = minhash.signatures(texts).reshape(-1, minhash.bands, minhash.rows)
    sets, group = [minhash.shingles(text) for text in texts], list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        collide = (made[i] == made[j]).all(axis=-1).any()
        if collide and jaccard(sets[i], sets[j]) >= verify:
            low, high = sorted((group[i], group[j]))
            group = [low if one == high else one for one in group]
    return group


@pytest.mark.parametrize("verify", [None, 0.0, 0.8])
def test_groups_are_those_of_all_pairs(verify):
    texts, _ = planted(changed=4)
    loose = MinHash(bands=20, rows=2)  # that joins many
    found = near_duplicates(texts, loose, verify=verify)
    assert found.first.tolist() == brute_force(texts, loose, verify or 0.0)
    assert found.sizes.sum() == len(texts)


def test_copies_with_one_word_changed_are_found():
    texts, origins = planted()
    found = near_duplicates(texts)
    assert np.array_equal(found.first, origins)
    assert found.kept.tolist() == list(range(60))


def test_the_order_of_texts_changes_no_group():
    texts, _ = planted(changed=3)
    found = near_duplicates(texts)
    order = np.random.default_rng(3).permutation(len(texts))
    other = near_duplicates([texts[k] for k in order])

    def groups(first, names):
        return {frozenset(names[first == k].tolist()) for k in set(first.tolist())}

    assert groups(found.first, np.arange(len(texts))) == groups(other.first, order)


def test_verified_groups_have_no_pair_below_in_their_chain():
    texts, _ = planted(changed=6, copies=60)
    loose = MinHash(bands=50, rows=1)
    found = near_duplicates(texts, loose, verify=0.9)
    sets = [loose.shingles(text) for text in texts]
    for row, first in enumerate(found.first):
        others = [k for k in np.flatnonzero(found.first == first) if k != row]
        assert not others or max(jaccard(sets[row], sets[k]) for k in others) >= 0.9
    # Without that look the loose bands join texts that have little in common.
    assert len(near_duplicates(texts, loose).kept) < len(found.kept)


def test_the_same_text_in_other_letters_always_collides():
    texts = [
        SPEECHES[0],
        SPEECHES[0].upper(),
        SPEECHES[0].replace(" ", " \n"),
        "Ay.",
        "ay",
    ]
    assert near_duplicates(texts, MinHash(bands=1, rows=64)).first.tolist() == [
        0,
        0,
        0,
        3,
        3,
    ]


def test_nothing_and_bad_values():
    assert near_duplicates([]).kept.tolist() == []
    with pytest.raises(TypeError, match="expected several texts"):
        near_duplicates("one")
    with pytest.raises(TypeError, match="minhash"):
        near_duplicates(["a"], 14)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="verify"):
        near_duplicates(["a"], verify=1.5)
