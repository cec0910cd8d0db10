"""Gradual magnitude pruning against a loop in numpy, its counts, and what it sends."""

import jax
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from small_network import mean, moved, run, slope

import fedjax_fm as ffm
from fedjax_fm.algorithms import gradual_pruning
from fedjax_fm.population import samplers

RATE, STEPS, SIZES = 0.05, 2, (6, 3, 5)
TASK = ffm.Task(mlp_loss)
WALK = {"local_steps": STEPS, "batch_size": 8}
CLIENTS = make_clients(sizes=SIZES)
DELTA, BACKBONE = make_trees()
PLAN = {"final_sparsity": 0.75, "first": 1, "last": 5, "every": 2}


def make(optimizer=None, server=None, **how):
    optimizer = optax.sgd(RATE) if optimizer is None else optimizer
    return gradual_pruning(TASK, optimizer, server, **(PLAN | WALK | how))


def after(rounds, method=None, **how):
    method = make() if method is None else method
    _, state, metrics = run(method, CLIENTS, DELTA, rounds, BACKBONE, **how)
    return state, metrics


def sparsity(t):
    """Equation (1) of the paper, held between prunings."""
    steps = min(max((t - 1) // 2, 0), 2)
    return 0.75 * (1 - (1 - steps / 2) ** 3)


def pruned(w, mask, zeros):
    """The mask without the smallest of what it keeps, so that `zeros` are out."""
    scores = np.where(mask, np.abs(w), -1).ravel()
    kept = np.argsort(-scores, kind="stable")[: w.size - zeros]
    flags = np.zeros(w.size, bool)
    flags[kept] = True
    return flags.reshape(w.shape)


def test_against_a_loop_in_numpy():
    state, metrics = after(6)
    delta, mask = DELTA, np.ones((3, 4), bool)
    densities = []
    for t in range(6):
        densities.append(mask.mean())
        ends = []
        for client in CLIENTS:
            w = delta
            for _ in range(STEPS):
                gradient = slope(w, BACKBONE, client)
                gradient["w"] = gradient["w"] * mask
                w = moved(w, gradient, RATE)
            ends.append(w)
        delta = mean(ends, SIZES)
        mask = pruned(delta["w"], mask, int(sparsity(t + 1) * 12 + 0.5))
        delta["w"] = delta["w"] * mask
    np.testing.assert_array_equal(state.carry.server.masks["w"], mask)
    np.testing.assert_allclose(state.delta["w"], delta["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.delta["v"], delta["v"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["density"], densities, rtol=1e-6)
    assert densities[0] == densities[2] == 1 > densities[3] > densities[5] == 0.25


def test_zeros_stay_whatever_the_optimizers_do():
    """Adam's and a decay's steps, at both ends; the leaf without a mask moves on."""
    client = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.05))
    method = make(client, optax.adam(0.01), first=0, last=1, every=1)
    state, _ = after(4, method)
    mask = np.asarray(state.carry.server.masks["w"])
    assert mask.sum() == 3
    assert (np.asarray(state.delta["w"])[~mask] == 0).all()
    assert (np.asarray(state.delta["w"])[mask] != 0).all()
    assert not np.allclose(state.delta["v"], DELTA["v"])


def test_a_sparsity_of_zero_is_fedavg():
    state, metrics = after(3, make(final_sparsity=0.0))
    fedavg, plain = after(3, ffm.fedavg(TASK, optax.sgd(RATE), **WALK))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
        state.delta,
        fedavg.delta,
    )
    assert metrics["uplink_bytes"].tolist() == plain["uplink_bytes"].tolist()
    assert metrics["downlink_bytes"].tolist() == plain["downlink_bytes"].tolist()


def test_bytes_both_ways_and_masks_to_those_who_lack_them():
    """Twelve entries of w and four of v; one client a round, in turn."""
    method = make(first=0, last=1, every=1)
    _, metrics = after(5, method, sampler=samplers.cyclic(3, 1), cohort_size=1)
    kept = 4 * (3 + 4)
    assert metrics["uplink_bytes"].tolist() == [64, kept, kept, kept, kept]
    bits = 2  # of twelve flags
    downlink = [64, kept + bits, kept + bits, kept + bits, kept]
    assert metrics["downlink_bytes"].tolist() == downlink


def test_masks_that_are_sparse_from_the_start_are_sent():
    method = make(first=0, last=1, every=1, initial_sparsity=0.5)
    state, metrics = after(2, method)
    assert metrics["density"].tolist() == [0.5, 0.25]
    assert metrics["downlink_bytes"][0] == 3 * (4 * (6 + 4) + 2)
    start = pruned(DELTA["w"], np.ones((3, 4), bool), 6)
    end = np.asarray(state.carry.server.masks["w"])
    assert (end <= start).all()


def test_one_threshold_for_all():
    method = make(first=0, last=1, every=1, scope="global", pruned="w|v")
    state, metrics = after(2, method)
    masks = state.carry.server.masks
    assert int(masks["w"].sum()) == 4
    assert int(masks["v"].sum()) == 1  # it would have died
    assert metrics["density"].tolist() == [1, 5 / 16]
    assert metrics["density v"].tolist() == [1, 0.25]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"last": 1}, "from first=1 to last=1 ends before it starts"),
        ({"final_sparsity": 1.0}, "final_sparsity=1.0"),
        ({"scope": "row"}, "scope='row'"),
        ({"pruned": "("}, "pruned='\\('"),
    ],
)
def test_what_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        make(**how)


def test_leaves_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"pruned='kernel' names no leaf of v"):
        after(1, make(pruned="kernel"))
