"""The study on lottery tickets, small: masks that are found, and what is trained in them."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm import fedavg, study
from fedjax_fm.experiments.shared.perceptron import TASK
from fedjax_fm.experiments.winning_tickets import STUDY, Config, data
from fedjax_fm.experiments.winning_tickets.arms import (
    NEW,
    at_random,
    first,
    masks_of,
    sgd,
    trained,
)
from fedjax_fm.study.run import Run

CONFIG = dataclasses.replace(Config().smoke(), rounds=3, levels=(1, 2))


@pytest.fixture(scope="module")
def dealt():
    return data(CONFIG, 0, "final")


@pytest.fixture(scope="module")
def found():
    return run_arms(STUDY, CONFIG)


def make_run(dealt, name="ticket_larger"):
    return Run(name, CONFIG, 0, "final", {"rate": 0.1}, lambda: dealt)


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    sizes = {"w0": 64 * 16, "w1": 16 * 16, "w2": 160}
    for name, levels in (("larger", 1), ("smaller", 2)):
        kept = sum(n - int((1 - 0.8**levels) * n + 0.5) for n in sizes.values())
        density = found[f"ticket_{name}"].scores["density"]
        assert density == pytest.approx(kept / sum(sizes.values()), rel=1e-6)
        assert found[f"random_{name}"].scores["density"] == density
        assert found[f"redrawn_{name}"].scores["density"] == density


def test_masks_are_the_largest_weights_of_the_whole_network(dealt, found):
    """One level: FedAvg, then the largest four fifths of each layer."""
    run = make_run(dealt)
    masks = masks_of(run, 1)
    dense = Run("dense", CONFIG, 0, "final", {"rate": 0.1}, lambda: dealt)
    algorithm = fedavg(TASK, sgd(dense), **study.walk(CONFIG))
    whole = trained(dense, algorithm, first(dense), CONFIG.rounds).state.delta
    for name, mask in masks.items():
        size = np.abs(np.asarray(whole[name])).ravel()
        order = np.argsort(-size, kind="stable")
        flat = np.zeros(size.size, bool)
        flat[order[: mask.sum()]] = True
        np.testing.assert_array_equal(mask.ravel(), flat)


def test_random_masks_have_as_many_entries_elsewhere(dealt):
    run = make_run(dealt)
    masks = masks_of(run, 2)
    drawn = at_random(run, masks)
    for name, mask in masks.items():
        assert np.asarray(drawn[name]).sum() == mask.sum()
        assert (np.asarray(drawn[name]) != mask).any()


def test_new_weights_are_others(dealt):
    run = make_run(dealt)
    old, new = first(run), first(run, NEW)
    assert all((a != b).all() for a, b in zip(*map(jax.tree.leaves, (old, new))))  # noqa: B905


def test_what_is_not_trained_again_sends_what_the_search_sends(dealt, found):
    sent = {name: one.run.bytes["uplink_bytes"] for name, one in found.items()}
    search = make_run(dealt)
    masks_of(search, 1)
    assert sent["as_found"] == search.bytes["uplink_bytes"] < sent["ticket_larger"]
    assert sent["untrained"] == 0
