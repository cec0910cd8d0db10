"""The study on private training without sampling, small."""

import dataclasses
import types

import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm.experiments.dp_ftrl import NOISES, STUDY, Config
from fedjax_fm.experiments.dp_ftrl.training import Log, multiplier, noise_of
from fedjax_fm.experiments.dp_ftrl.words import OTHER, data, vocabulary, windows
from fedjax_fm.privacy.mechanisms import gaussian

CONFIG = dataclasses.replace(Config().smoke(), least=600, most=700)
KEPT = ("independent_rho1", "banded_rho0.2", "tree_rho2", "no_noise", "untrained")


@pytest.fixture(scope="module")
def found():
    left = [arm.name for arm in STUDY.arms if arm.name not in KEPT]
    return run_arms(STUDY, CONFIG, leave_out=left)


def test_arms_give_their_scores_and_the_timer_holds(found):
    check_scores(STUDY, found)
    for name in KEPT[:3]:
        scores = found[name].scores
        assert scores["separation"] >= CONFIG.rest
        assert scores["times"] <= -(-CONFIG.rounds // CONFIG.rest)
    assert found["no_noise"].scores["noise"] == 0


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("rho", [0.2, 2.0])
def test_renyi_divergence_of_any_order_is_order_times_rho(name, rho):
    """Of dp-accounting, for what a user who comes as often as possible moves."""
    from dp_accounting import rdp

    rest, rounds = 4, 32
    noise = noise_of(name, rest)
    z = multiplier(noise, rest, rounds, rho)
    comes = np.zeros(rounds)
    comes[::rest] = 1
    moved = max(
        np.linalg.norm(noise.strategy(rounds) @ np.roll(comes, shift))
        for shift in range(rest)
    )
    accountant = rdp.RdpAccountant([2.0, 8.0, 32.0]).compose(gaussian(z / moved))
    np.testing.assert_allclose(accountant.rdp, [2 * rho, 8 * rho, 32 * rho], rtol=1e-6)


def test_banded_noise_leaves_less_in_the_model_than_independent_noise():
    """At equal rho: the variance of the last prefix sum."""
    rest, rounds = 4, 32
    left = {}
    for name in NOISES:
        noise = noise_of(name, rest)
        z = multiplier(noise, rest, rounds, 1.0)
        strategy = noise.strategy(rounds)
        last = np.ones(rounds) @ np.linalg.pinv(strategy)
        left[name] = z**2 * last @ last
    assert left["banded"] < left["independent"]
    assert left["tree"] < left["independent"]


def test_a_log_that_is_too_close_is_seen():
    log = Log()
    for times in ([1, 0], [1, 1], [2, 1]):
        carry = types.SimpleNamespace(sampler=(0, 0, np.array(times)))
        log(1, types.SimpleNamespace(carry=carry), {})
    assert log.separation() == 2
    assert log.most() == 2


def test_users_of_the_test_never_train_and_no_word_is_asked_for_that_is_not_known():
    dealt = data(CONFIG, 0, "final")
    trained = {one["read"].tobytes() for one in dealt.clients}
    assert len(trained) == len(dealt.clients)
    numbers = vocabulary(CONFIG.vocabulary)
    assert sorted(numbers.values()) == list(range(1, CONFIG.vocabulary))
    assert (dealt.test["label"] != OTHER).all()
    found = windows(["the", "so", "xyzzy", "the", "the", "of"], numbers)
    assert found["label"].tolist() == [numbers["the"], numbers["of"]]
    assert found["read"][0].tolist()[2] == OTHER
