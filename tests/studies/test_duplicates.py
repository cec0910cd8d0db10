"""The study on near duplicates, small."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm import privacy
from fedjax_fm.datasets.quality import jaccard, shingles
from fedjax_fm.experiments.dp_ftrl.training import multiplier, noise_of
from fedjax_fm.experiments.duplicates import STUDY, Config
from fedjax_fm.experiments.duplicates.filtering import (
    LOOSE,
    NEAR,
    SAME,
    of_pairs,
    without_duplicates,
)
from fedjax_fm.experiments.duplicates.texts import ALONE, data
from fedjax_fm.experiments.duplicates.training import group_epsilon, most_holders
from fedjax_fm.population import samplers

CONFIG = dataclasses.replace(Config().smoke(), users=30, most=60, rounds=2, cohort=4)
KEPT = ("planted", "private_filtered", "untrained")


@pytest.fixture(scope="module")
def found():
    left = [arm.name for arm in STUDY.arms if arm.name not in KEPT]
    return run_arms(STUDY, CONFIG, leave_out=left)


@pytest.fixture(scope="module")
def dealt():
    return data(CONFIG, 0, "final")


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    private = found["private_filtered"].scores
    assert private["epsilon"] == private["of_text"]  # one user is left that holds it


def test_keys_are_on_the_bill(found, dealt):
    sent = {name: found[name].run.bytes["uplink_bytes"] for name in KEPT}
    made = without_duplicates(CONFIG, dealt.planted, [*dealt.seen, *dealt.unseen], NEAR)
    assert sent["private_filtered"] - sent["planted"] == made.uplink_bytes
    n = sum(
        len(text.split()) >= CONFIG.shortest
        for texts in [*dealt.planted.texts, dealt.seen, dealt.unseen]
        for text in texts
    )
    assert made.uplink_bytes == n * 14 * 8


def test_what_is_planted(dealt):
    families = np.concatenate(dealt.planted.families)
    own = [np.unique(one[one != ALONE]) for one in dealt.planted.families]
    counts = np.bincount(np.concatenate(own).astype(int))
    assert (counts[: CONFIG.test_texts] == CONFIG.holders).all()
    repeated = families[families >= CONFIG.test_texts]
    repeated = repeated[repeated < CONFIG.test_texts + CONFIG.repeating]
    _, sizes = np.unique(repeated, return_counts=True)
    assert (sizes == 1 + CONFIG.repeats + 1).all()  # itself, at its user, at another
    assert most_holders(CONFIG, dealt.planted) == CONFIG.holders
    assert most_holders(CONFIG, dealt.clean) == 1
    clean = {text for texts in dealt.clean.texts for text in texts}
    assert not clean & {*dealt.seen, *dealt.unseen}


def test_copies_are_near(dealt):
    """Each word that is another takes at most five runs of five out."""
    for family, text in enumerate(dealt.seen):
        for texts, numbers in zip(*dealt.planted, strict=True):
            for k in np.flatnonzero(numbers == family):
                changed = sum(
                    a != b for a, b in zip(texts[k].split(), text.split(), strict=True)
                )
                assert changed <= CONFIG.changed
                n = len(shingles(text))
                least = (n - 5 * changed) / (n + 5 * changed)
                assert jaccard(shingles(texts[k]), shingles(text)) >= min(least, 1)


@pytest.mark.parametrize("minhash", [LOOSE, NEAR, SAME])
def test_what_stays_holds_nothing_of_the_test_that_is_alike(dealt, minhash):
    test = [*dealt.seen, *dealt.unseen]
    made = without_duplicates(CONFIG, dealt.planted, test, minhash)
    left = {shingles(text) for texts in made.users.texts for text in texts}
    assert not left & {shingles(text) for text in test}
    for texts, numbers in zip(*made.users, strict=True):
        assert len(texts) == len(numbers)
    assert most_holders(CONFIG, made.users) == 1


def test_near_finds_more_than_same_and_loose_more_than_near(dealt):
    test = [*dealt.seen, *dealt.unseen]
    loose, near, same = (
        without_duplicates(CONFIG, dealt.planted, test, how)
        for how in (LOOSE, NEAR, SAME)
    )
    assert same.recall < near.recall < loose.recall <= 1
    assert same.precision == 1


def test_recall_and_precision_by_all_pairs():
    random = np.random.default_rng(0)
    families, groups = random.integers(-1, 5, 60), random.integers(0, 7, 60)
    both = planted = joined = 0
    for i, j in itertools.combinations(range(60), 2):
        is_planted = families[i] == families[j] != ALONE
        is_joined = groups[i] == groups[j]
        planted += is_planted
        joined += is_joined
        both += is_planted and is_joined
    assert of_pairs(families, groups) == (both / planted, both / joined)
    assert of_pairs(np.array([-1, -1]), np.array([0, 1])) == (1.0, 1.0)


def test_a_group_of_k_has_k_squared_the_divergence():
    """In zero-concentrated privacy, and as the accountant's epsilon has it."""
    config, noise = Config(), noise_of("banded", 4)
    z = multiplier(noise, config.rest, config.rounds, config.rho)
    sampler = samplers.spaced(200, 20, config.rest)
    found = [group_epsilon(config, sampler, noise, z, k) for k in (1, 2, 16)]
    assert found == sorted(found)
    four_times = multiplier(noise, config.rest, config.rounds, 4 * config.rho)
    how = {"rounds": config.rounds, "delta": config.delta}
    expected = privacy.spent(sampler, noise, four_times, **how).epsilon
    assert found[1] == pytest.approx(expected)
    for k, epsilon in zip((1, 2, 16), found, strict=True):
        rho = k * k * config.rho
        bound = rho + 2 * math.sqrt(rho * math.log(1 / config.delta))
        assert epsilon <= bound * 1.001
