"""FSLoRA: random ranks in a plain loop, and what their mean and their variance are."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lora_problem import (
    HOW,
    LAYERS,
    MIXED,
    RATE,
    STEPS,
    close,
    gradients,
    in_numpy,
    loss,
    make_clients,
    make_trees,
    simulated,
)

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.algorithms.lora_rules.drawn import orders_of
from fedjax_fm.algorithms.lora_rules.factors import split

SERVER = optax.sgd(1.0)


def kept(delta, orders, n_kept):
    """The ranks drawn, with r / m on b; numpy, without the engine's factors."""
    delta = in_numpy(delta)
    for name in LAYERS:
        chosen = np.asarray(orders[name])[:n_kept]
        a, b = delta[name]["lora_a"], delta[name]["lora_b"]
        b = b[..., chosen, :] * 3 / n_kept
        delta[name] = {"lora_a": a[..., chosen], "lora_b": b}
    return delta


def change_by_hand(delta, backbone, client, orders, n_kept):
    """What one client adds to the factors: gradient descent on its ranks.

    With b' = (3 / m) b a step of size eta on b is one of (3 / m)^2 eta on b'.
    """
    backbone, client = in_numpy(backbone), in_numpy(client)
    now, scale = kept(delta, orders, n_kept), 3 / n_kept
    start = jax.tree.map(np.copy, now)
    for _ in range(STEPS):
        step = gradients(now, backbone, client["x"], client["y"])
        now["head"] = now["head"] - RATE * step["head"]
        for name in LAYERS:
            now[name] = {
                "lora_a": now[name]["lora_a"] - RATE * step[name]["lora_a"],
                "lora_b": now[name]["lora_b"] - RATE * scale**2 * step[name]["lora_b"],
            }
    change = jax.tree.map(np.zeros_like, in_numpy(delta))
    change["head"] = now["head"] - start["head"]
    for name in LAYERS:
        chosen = np.asarray(orders[name])[:n_kept]
        a, b = (now[name][x] - start[name][x] for x in ("lora_a", "lora_b"))
        change[name]["lora_a"][..., chosen] = a
        change[name]["lora_b"][..., chosen, :] = b / scale
    return change


def test_rounds_are_those_of_a_plain_loop():
    one, state, _ = simulated("fslora", MIXED, server_optimizer=SERVER)
    clients = make_clients()
    for round_index in range(2):
        server = state.carry.server
        changes = []
        for client, rank in enumerate(MIXED):
            where = (server.seed, jnp.int32(round_index), jnp.int32(client))
            orders = orders_of(split(state.delta), *where)
            how = (state.delta, one.backbone, clients[client], orders, rank)
            changes.append(change_by_hand(*how))
        mean = jax.tree.map(lambda *xs: np.mean(xs, axis=0), *changes)
        expected = jax.tree.map(np.add, in_numpy(state.delta), mean)
        state, _ = one.run(state, 1)
        close(state.delta, expected, rtol=1e-4, atol=1e-5)


def test_with_all_ranks_it_is_fedavg_with_that_optimizer():
    how = {"server_optimizer": optax.adam(0.01)}
    one, state, _ = simulated("fslora", **how, weighted=True)
    plain = ffm.fedavg(ffm.Task(loss), optax.sgd(RATE), optax.adam(0.01), **HOW)
    population = ffm.Population.from_clients(make_clients())
    other = ffm.Simulator(
        plain, population, backbone=one.backbone, cohort_size=8, devices=1
    )
    expected, bill = other.run(other.init(state.delta), 3)
    state, metrics = one.run(state, 3)
    close(state.delta, expected.delta, rtol=1e-3, atol=1e-4)
    for way in ("uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(metrics[way], bill[way])


def test_ranks_that_nobody_drew_stay_to_the_bit():
    how = {"ranks": [1, 1], **HOW}
    method = lora_rules.fslora(ffm.Task(loss), optax.sgd(RATE), SERVER, **how)
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(make_clients()[:2])
    one = ffm.Simulator(method, population, backbone=backbone, cohort_size=2, devices=1)
    state = one.init(delta)
    after, _ = one.run(state, 1)
    for name in LAYERS:
        drawn = set()
        for client in range(2):
            where = (state.carry.server.seed, jnp.int32(0), jnp.int32(client))
            drawn.add(int(orders_of(split(delta), *where)[name][0]))
        same = np.all(after.delta[name]["lora_b"] == delta[name]["lora_b"], axis=-1)
        same = same.reshape(-1, 3).all(axis=0)
        assert set(np.flatnonzero(~same)) == drawn


def test_the_sketch_is_unbiased_and_of_the_variance_of_its_closed_form():
    """Over all subsets of two ranks of four: E[B S A] = B A, and
    E|B S A - B A|^2 = (r / m - 1) r / (r - 1) (sum_i |b_i|^2 |a_i|^2 - |B A|^2 / r).
    The draws of 6,000 clients are such subsets, equally often."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 5)), rng.normal(size=(4, 3))
    parts = np.einsum("ri,ro->rio", a, b)
    whole = parts.sum(0)
    subsets = list(itertools.combinations(range(4), 2))
    sketches = {x: 2 * parts[list(x)].sum(0) for x in subsets}
    np.testing.assert_allclose(np.mean(list(sketches.values()), 0), whole, atol=1e-12)
    sizes = np.sum(a**2, 1) @ np.sum(b**2, 1)
    closed = 4 / 3 * (sizes - np.sum(whole**2) / 4)
    variance = np.mean([np.sum((x - whole) ** 2) for x in sketches.values()])
    np.testing.assert_allclose(variance, closed)

    factors = split({"lora_a": jnp.zeros((5, 4)), "lora_b": jnp.zeros((4, 3))})
    seed = jax.random.key_data(jax.random.key(0))
    draw = jax.vmap(lambda client: orders_of(factors, seed, jnp.int32(3), client)[""])
    drawn = np.sort(np.asarray(draw(jnp.arange(6000)))[:, :2], axis=1)
    counts = np.array([np.sum((drawn == x).all(1)) for x in subsets])
    assert np.sum((counts - 1000) ** 2 / 1000) < 20.5  # chi square of 5, 0.1 %


def test_a_round_without_uploads_moves_nothing():
    """AdamW would shrink the weights and go on with its momentum."""
    gone = ffm.Behaviour(drops=lambda client, round_index, key: round_index > 0)
    method = lora_rules.fslora(ffm.Task(loss), optax.sgd(RATE), **HOW)
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(make_clients()[:2])
    one = ffm.Simulator(
        method, population, backbone=backbone, cohort_size=2, devices=1, behaviour=gone
    )
    first, _ = one.run(one.init(delta), 1)
    second, _ = one.run(first, 1)
    jax.tree.map(np.testing.assert_array_equal, first.delta, second.delta)
