"""SLoRA: both stages in plain loops, the SVD between them, and the bytes of each."""

import jax
import numpy as np
import optax
import pytest
from lora_problem import (
    HOW,
    LAYERS,
    MIXED,
    RATE,
    SCALING,
    base,
    close,
    effective,
    kernels,
    loss,
    make_clients,
    make_trees,
    mean,
    train,
    train_entries,
)

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules

HEAD, SIDES, ENTRIES = 7, 2 * 10 + 12, (25, 35)


def simulator(trees=None, **how):
    how = {"sparse_rounds": 2, "density": 0.2, "scaling": SCALING, **HOW} | how
    method = lora_rules.slora(ffm.Task(loss), optax.sgd(RATE), **how)
    delta, backbone = trees or make_trees()
    population = ffm.Population.from_clients(make_clients())
    one = ffm.Simulator(method, population, backbone=backbone, cohort_size=8, devices=1)
    return one, one.init(delta)


def masks(state):
    """{layer: bool[..., in, out]}."""
    found = {}
    for name, n_out in (("inner", 5), ("outer", 7)):
        places = np.asarray(state.carry.server.places[name])
        flat = np.zeros((*places.shape[:-1], 5 * n_out), bool)
        np.put_along_axis(flat, places, True, axis=-1)
        found[name] = flat.reshape(*flat.shape[:-1], 5, n_out)
    return found


def test_stage_one_trains_the_entries_of_the_mask():
    one, state = simulator(sparse_rounds=3)
    mask, weights = masks(state), base(state.delta, one.backbone)
    assert [mask[name].sum() for name in LAYERS] == [2 * 5, 7]
    start = weights
    for _ in range(2):
        found = [train_entries(weights, client, mask) for client in make_clients()]
        weights = mean(found)
        state, metrics = one.run(state, 1)
        delta, seen = one.model(state)
        close(effective(delta, seen), weights, atol=1e-5)
    for name in LAYERS:
        kernel = np.asarray(seen[name]["base"]["kernel"])
        np.testing.assert_array_equal(
            kernel[~mask[name]], start[name].astype(np.float32)[~mask[name]]
        )
        assert np.all(kernel[mask[name]] != start[name].astype(np.float32)[mask[name]])
    assert (
        metrics["uplink_bytes"][0]
        == metrics["downlink_bytes"][0]
        == 8 * 4 * (17 + HEAD)
    )


def test_density_one_is_fedavg_on_the_kernels():
    one, state = simulator(density=1.0, sparse_rounds=2)
    weights = base(state.delta, one.backbone)
    weights = mean([train_entries(weights, client, {}) for client in make_clients()])
    state, metrics = one.run(state, 1)
    close(effective(*one.model(state)), weights, atol=1e-5)
    assert metrics["uplink_bytes"][0] == 8 * 4 * (2 * 25 + 35 + HEAD)


@pytest.mark.parametrize("rank", [2, 5])
def test_the_factors_are_the_best_of_their_rank(rank):
    """Eckart and Young: the error is that of the singular values that are cut off; a
    rank of five holds any change of these kernels."""
    one, state = simulator(make_trees(rank=rank), sparse_rounds=1)
    mask, start = masks(state), base(state.delta, one.backbone)
    learnt = mean([train_entries(start, client, mask) for client in make_clients()])
    state, _ = one.run(state, 1)
    delta, seen = one.model(state)
    jax.tree.map(np.testing.assert_array_equal, seen, one.backbone)  # W is as it was
    after = effective(delta, seen)
    close(after["head"], learnt["head"], atol=1e-5)
    for name in LAYERS:
        change = learnt[name] - start[name]
        left = np.linalg.norm(after[name] - learnt[name], axis=(-2, -1))
        tail = np.linalg.svd(change, compute_uv=False)[..., rank:]
        expected = np.sqrt(np.sum(tail**2, axis=-1))
        np.testing.assert_allclose(left, expected, rtol=1e-3, atol=1e-5)
        a, b = (np.asarray(delta[name][kind]) for kind in ("lora_a", "lora_b"))
        if rank == 2:
            assert np.all(expected > 1e-3)
            grams = np.swapaxes(a, -1, -2) @ a, b @ np.swapaxes(b, -1, -2)
            close(*grams, rtol=1e-3, atol=1e-5)
        lengths = np.linalg.norm(a, axis=-2)
        assert np.all(lengths > 1e-3)  # no row is dead, whatever the rank of the change


def test_stage_two_is_fedit_from_there():
    one, state = simulator(sparse_rounds=1, ranks=MIXED)
    state, first = one.run(state, 1)
    found = [
        train(state.delta, one.backbone, client, rank)
        for client, rank in zip(make_clients(), MIXED, strict=True)
    ]
    state, second = one.run(state, 1)
    close(state.delta, mean(found), atol=1e-5)
    # of both stages, each its own bill
    for way in ("uplink_bytes", "downlink_bytes"):
        assert first[way][0] == 8 * 4 * (17 + HEAD)
        assert second[way][0] == 4 * (sum(MIXED) * SIDES + 8 * HEAD)


def test_without_sparse_rounds_it_is_fedit():
    one, state = simulator(sparse_rounds=0)
    delta, backbone = make_trees()
    fedit = lora_rules.fedit(ffm.Task(loss), optax.sgd(RATE), **HOW)
    population = ffm.Population.from_clients(make_clients())
    other = ffm.Simulator(
        fedit, population, backbone=backbone, cohort_size=8, devices=1
    )
    same, expected = other.run(other.init(delta), 2)
    state, metrics = one.run(state, 2)
    close(state.delta, same.delta)
    np.testing.assert_array_equal(metrics["uplink_bytes"], expected["uplink_bytes"])


def test_stage_one_takes_no_part_of_the_factors():
    """The delta of this problem has factors that are not zero."""
    one, state = simulator()
    delta, seen = one.model(state)
    close(kernels(delta, seen)[2], one.backbone["outer"]["base"]["kernel"])


def test_impossible_arguments_are_refused():
    with pytest.raises(
        ValueError, match=r"density of at least 1 / 25, .*density=0\.01"
    ):
        simulator(density=0.01)
    with pytest.raises(
        ValueError, match=r"at most 2, the smaller side of .*got rank 3"
    ):
        simulator(make_trees(d=2))
