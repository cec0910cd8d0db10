"""FedASK: two sketches against the mean product on whole matrices in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lora_problem import (
    HOW,
    LAYERS,
    MIXED,
    RATE,
    close,
    loss,
    make_clients,
    make_trees,
    mean,
    simulated,
    train,
)

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.algorithms.lora_rules.factors import Pair, product, split
from fedjax_fm.algorithms.lora_rules.sketches import random_directions, sketched

D_IN, D_OUT, HEAD = 3 * 5, 2 * 5 + 7, 7


def products(tree, name):
    a, b = (np.asarray(tree[name][kind], np.float64) for kind in ("lora_a", "lora_b"))
    return a @ b


def best(matrix, rank):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :]


def ends(state, backbone):
    clients = zip(make_clients(), MIXED, strict=True)
    return [train(state.delta, backbone, *client) for client in clients]


def test_a_sketch_that_holds_the_mean_loses_nothing_but_the_tail():
    """Seven rows hold any mean of 5 x 5 and 5 x 7 matrices: it is FlexLoRA."""
    one, state, _ = simulated("fedask", MIXED, sketch=7)
    other, same, _ = simulated("flexlora", MIXED)
    found = ends(state, one.backbone)
    state, _ = one.run(state, 1)
    same, _ = other.run(same, 1)
    close(state.delta["head"], mean(found)["head"])
    for name in LAYERS:
        whole = mean([products(end, name) for end in found])
        close(products(state.delta, name), best(whole, 3), atol=2e-5)
        close(products(state.delta, name), products(same.delta, name), atol=2e-5)
        a, b = (np.asarray(state.delta[name][kind]) for kind in ("lora_a", "lora_b"))
        grams = np.swapaxes(a, -1, -2) @ a, b @ np.swapaxes(b, -1, -2)
        close(*grams, rtol=1e-3, atol=1e-4)  # the singular values, on both sides


def test_the_clients_effective_weights_are_their_mean_if_the_rank_holds():
    """Clients of rank 1, two of them: the mean has rank 2, that of the delta 3."""
    how = {"ranks": [1, 1], "sketch": 3, **HOW}
    method = lora_rules.fedask(ffm.Task(loss), optax.sgd(RATE), **how)
    delta, backbone = make_trees()
    clients = make_clients()[:2]
    population = ffm.Population.from_clients(clients)
    one = ffm.Simulator(method, population, backbone=backbone, cohort_size=2, devices=1)
    state, _ = one.run(one.init(delta), 1)
    found = [train(delta, backbone, client, 1) for client in clients]
    for name in LAYERS:
        whole = mean([products(end, name) for end in found], (6, 1))
        close(products(state.delta, name), whole, atol=2e-5)
        assert np.abs(whole - products(delta, name)).max() > 1e-2


def test_a_smaller_sketch_projects_the_mean():
    one, state, _ = simulated("fedask", MIXED, sketch=3)
    found = ends(state, one.backbone)
    omega = random_directions(split(state.delta), state.carry.server.seed, 3)
    after, _ = one.run(state, 1)
    for name in LAYERS:
        whole = mean([products(end, name) for end in found])
        seen = np.swapaxes(whole, -1, -2) @ np.asarray(omega[name], np.float64)
        q, _ = np.linalg.qr(seen)
        projected = whole @ q @ np.swapaxes(q, -1, -2)
        close(products(after.delta, name), projected, rtol=1e-4, atol=5e-5)
        assert np.linalg.norm(whole - projected) > 1e-3


def test_both_trips_are_billed():
    one, state, _ = simulated("fedask", MIXED, sketch=6)
    _, metrics = one.run(state, 2)
    # the basis of five outputs has five rows
    up = 6 * D_OUT + HEAD + 2 * 5 * 5 + 6 * 5
    down = [r * (D_IN + D_OUT) + HEAD + 2 * 5 * 5 + 6 * 7 for r in MIXED]
    assert metrics["uplink_bytes"].tolist() == [8 * 4 * up] * 2
    assert metrics["downlink_bytes"].tolist() == [4 * sum(down)] * 2


def test_a_client_that_drops_out_equals_a_smaller_cohort():
    gone = ffm.Behaviour(drops=lambda client, round_index, key: client == 1)
    states = []
    delta, backbone = make_trees()
    method = lora_rules.fedask(ffm.Task(loss), optax.sgd(RATE), sketch=3, **HOW)
    all_three = make_clients()[:3]
    for chosen, how in ((all_three, {"behaviour": gone}), (all_three[::2], {})):
        population = ffm.Population.from_clients(chosen)
        one = ffm.Simulator(
            method,
            population,
            backbone=backbone,
            cohort_size=len(chosen),
            devices=1,
            **how,
        )
        states.append(one.run(one.init(delta), 1)[0].delta)
    for name in LAYERS:
        close(*(products(delta, name) for delta in states), atol=2e-5)


def test_ranks_that_learn_nothing_stay_trainable():
    """With a rate of zero and B = 0 the mean is zero; A keeps rows of unit length."""
    method = lora_rules.fedask(ffm.Task(loss), optax.sgd(0.0), sketch=3, **HOW)
    delta, backbone = make_trees()
    for name in LAYERS:
        delta[name]["lora_b"][:] = 0
    population = ffm.Population.from_clients(make_clients()[:2])
    one = ffm.Simulator(method, population, backbone=backbone, cohort_size=2, devices=1)
    state, _ = one.run(one.init(delta), 1)
    for name in LAYERS:
        assert not np.any(state.delta[name]["lora_b"])
        lengths = np.linalg.norm(state.delta[name]["lora_a"], axis=-2)
        np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_sketches_are_those_of_the_product():
    rng = np.random.default_rng(0)
    pair = Pair(*(rng.normal(size=(3, 2, n)).astype(np.float32) for n in (5, 4)))
    directions = rng.normal(size=(5, 6)).astype(np.float32)
    whole = np.swapaxes(np.asarray(product(pair)), -1, -2) @ directions
    np.testing.assert_allclose(
        jnp.moveaxis(sketched(pair, directions), 0, -1), whole, atol=1e-5
    )


def test_a_sketch_below_the_rank_is_refused():
    method = lora_rules.fedask(ffm.Task(loss), optax.sgd(RATE), sketch=2, **HOW)
    with pytest.raises(ValueError, match=r"at most 2 .* sketch=2, .* got rank 3"):
        method.init(make_trees()[0], jax.random.key(0), ffm.Setting(2, 2))
