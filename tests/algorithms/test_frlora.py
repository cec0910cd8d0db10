"""FRLoRA: what is merged, the start that changes nothing, and what absent clients fetch."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lora_problem import (
    HOW,
    LAYERS,
    RATE,
    SCALING,
    close,
    effective,
    loss,
    make_clients,
    make_trees,
    mean,
    simulated,
    train,
    update,
)

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.algorithms.lora_rules.factors import product
from fedjax_fm.algorithms.lora_rules.frlora import balanced

D_IN, D_OUT, HEAD, DENSE = 3 * 5, 2 * 5 + 7, 7, 2 * 25 + 35


def started(d=5, rank=3):
    delta, backbone = make_trees(d, rank)
    return *lora_rules.principal_start(delta, backbone, scaling=SCALING), backbone


def test_the_start_is_the_first_singular_values_and_changes_no_weight():
    delta, rest, backbone = started(rank=2)
    for name in LAYERS:
        kernel = np.asarray(backbone[name]["base"]["kernel"], np.float64)
        close(effective(delta, rest)[name], kernel, atol=1e-5)
        whole = np.linalg.svd(kernel, compute_uv=False)
        left = np.linalg.svd(rest[name]["base"]["kernel"], compute_uv=False)
        close(left[..., : whole.shape[-1] - 2], whole[..., 2:], atol=1e-5)
        a, b = (np.asarray(delta[name][kind]) for kind in ("lora_a", "lora_b"))
        grams = np.swapaxes(a, -1, -2) @ a, b @ np.swapaxes(b, -1, -2)
        close(*grams, atol=1e-5)
        diagonal = np.diagonal(grams[0], axis1=-2, axis2=-1)
        close(diagonal, whole[..., :2] / SCALING, atol=1e-5)


def test_rounds_add_what_the_means_gained():
    """After T rounds W_T - W_0 = s sum_t (B_t A_t - B_0 A_0), from the same start."""
    one, state, _ = simulated("frlora")
    start, learned = state.delta, {name: 0.0 for name in LAYERS}
    for _ in range(3):
        _, beside = one.model(state)
        found = [train(state.delta, beside, client) for client in make_clients()]
        average = mean(found)
        state, _ = one.run(state, 1)
        after = effective(*one.model(state))
        for name in LAYERS:
            # the server's means beside the layers as they were, and merged: one model
            merged = effective(average, beside)[name]
            close(after[name], merged, atol=2e-5)
            gained = update(average, {name: {}}, name) - update(start, {name: {}}, name)
            learned[name] = learned[name] + gained
            for kind in ("lora_a", "lora_b"):
                np.testing.assert_array_equal(
                    state.delta[name][kind], start[name][kind]
                )
        close(state.delta["head"], average["head"])
    first = effective(start, one.backbone)
    for name in LAYERS:
        close(after[name] - first[name], learned[name], atol=2e-5)
        assert np.abs(learned[name]).max() > 0.01


def test_what_is_learnt_is_not_bound_by_the_rank():
    delta, rest, _ = started(rank=1)
    method = lora_rules.frlora(ffm.Task(loss), optax.sgd(RATE), scaling=SCALING, **HOW)
    population = ffm.Population.from_clients(make_clients())
    one = ffm.Simulator(method, population, backbone=rest, cohort_size=8, devices=1)
    state, _ = one.run(one.init(delta), 12)
    gained = effective(*one.model(state))["outer"] - effective(delta, rest)["outer"]
    singular = np.linalg.svd(gained, compute_uv=False)
    assert singular[2] > 2e-5  # rounding is below 1e-6; LoRA would have one alone


def test_the_bill_is_of_the_last_means_or_of_all_that_was_missed():
    """Clients 0, 0, 1, 0, with rank 1 of 16 x 16 and 16 x 18: 2 x 32 + 34 numbers."""
    schedule = jnp.array([0, 0, 1, 0], jnp.int32)

    def draw(i, key):
        return schedule[i][None], jnp.int32(1), i + 1

    sampler = ffm.Sampler(init=lambda: jnp.int32(0), draw=draw, capacity=1)
    delta, rest, _ = started(d=16, rank=1)
    method = lora_rules.frlora(ffm.Task(loss), optax.sgd(RATE), scaling=SCALING, **HOW)
    population = ffm.Population.from_clients(make_clients(16, (4, 3)))
    one = ffm.Simulator(
        method, population, backbone=rest, sampler=sampler, cohort_size=1, devices=1
    )
    _, metrics = one.run(one.init(delta), 4)
    sides, dense, head = 2 * 32 + 34, 2 * 256 + 288, 18
    assert metrics["uplink_bytes"].tolist() == [4 * (sides + head)] * 4
    numbers = [0, sides, 0, dense]
    assert metrics["downlink_bytes"].tolist() == [4 * (n + head) for n in numbers]


def test_matrices_that_are_smaller_than_factors_travel_whole():
    one, state, _ = simulated("frlora")
    _, metrics = one.run(state, 2)
    numbers = [0, DENSE]  # rank 3 of 5 x 5: 30 numbers against 25
    expected = [8 * 4 * (n + HEAD) for n in numbers]
    assert metrics["downlink_bytes"].tolist() == expected
    assert metrics["uplink_bytes"][0] == 8 * 4 * (3 * (D_IN + D_OUT) + HEAD)


def test_impossible_starts_are_refused():
    delta, backbone = make_trees(d=2)
    with pytest.raises(
        ValueError, match=r"at most 2, the smaller side of .*got rank 3"
    ):
        lora_rules.principal_start(delta, backbone, scaling=1.0)
    with pytest.raises(ValueError, match=r"dense kernel 'inner\.base\.kernel'"):
        lora_rules.principal_start(delta, {}, scaling=1.0)
    with pytest.raises(ValueError, match="scaling=0"):
        lora_rules.principal_start(delta, backbone, scaling=0)


def test_a_round_without_uploads_adds_nothing():
    gone = ffm.Behaviour(drops=lambda client, round_index, key: round_index > 0)
    delta, rest, _ = started()
    method = lora_rules.frlora(ffm.Task(loss), optax.sgd(RATE), scaling=SCALING, **HOW)
    population = ffm.Population.from_clients(make_clients()[:2])
    how = {"backbone": rest, "cohort_size": 2, "devices": 1, "behaviour": gone}
    one = ffm.Simulator(method, population, **how)
    first, _ = one.run(one.init(delta), 1)
    second, _ = one.run(first, 1)
    close(effective(*one.model(second)), effective(*one.model(first)))


def test_a_matrix_of_lower_rank_leaves_rows_that_can_be_trained():
    whole = jnp.outer(jnp.arange(1.0, 5), jnp.ones(3))
    pair = balanced(whole, 2, "layer")
    np.testing.assert_allclose(product(pair), whole, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(pair.a[1]), 1, atol=1e-6)
    assert not np.any(pair.b[1])
