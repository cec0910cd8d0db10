"""RAVAN's rule: exact means of heads, heads that few clients train, bytes."""

import jax
import jax.numpy as jnp
import lora_problem
import numpy as np
import optax
import pytest
from lora_problem import HOW, LAYERS, RATE, SIZES, close, in_numpy, make_clients, mean
from ravan_problem import N_HEADS, RANK, effective, loss, make_trees, train

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.algorithms.lora_rules.drawn import orders_of
from fedjax_fm.algorithms.lora_rules.heads import split_heads

FEW = (2, 1, 2, 1, 1, 1, 2, 1)
HEAD = 7


def simulator(heads=None, optimizer=None, n_heads=N_HEADS, n_clients=8, **how):
    optimizer = optax.sgd(RATE) if optimizer is None else optimizer
    method = lora_rules.ravan(ffm.Task(loss), optimizer, heads=heads, **HOW)
    delta, backbone = make_trees(n_heads)
    population = ffm.Population.from_clients(make_clients()[:n_clients])
    how = {"backbone": backbone, "cohort_size": n_clients, "devices": 1} | how
    one = ffm.Simulator(method, population, **how)
    return one, one.init(delta)


def test_effective_weights_are_the_mean_of_the_clients():
    one, state = simulator()
    for _ in range(2):
        found = [train(state.delta, one.backbone, client) for client in make_clients()]
        before, (state, metrics) = state.delta, one.run(state, 1)
        whole = effective(state.delta, one.backbone)
        close(whole, mean([effective(end, one.backbone) for end in found]), atol=1e-5)
        close(state.delta, mean(found), atol=1e-5)
        moved = whole["inner"] - effective(before, one.backbone)["inner"]
        assert np.abs(moved).max() > 1e-3
    numbers = 3 * N_HEADS * RANK**2 + HEAD
    assert metrics["uplink_bytes"].tolist() == [8 * 4 * numbers]
    assert metrics["downlink_bytes"].tolist() == [8 * 4 * numbers]


def chosen_by(state, round_index, client, n_heads):
    server = state.carry.server
    where = (server.seed, jnp.int32(round_index), jnp.int32(client))
    orders = orders_of(split_heads(state.delta), *where)
    return {name: np.asarray(orders[name])[:n_heads] for name in LAYERS}


def test_heads_are_averaged_over_those_who_trained_them():
    one, state = simulator(heads=FEW)
    for round_index in range(2):
        start = in_numpy(state.delta)
        chosen = [chosen_by(state, round_index, k, n) for k, n in enumerate(FEW)]
        found = [
            train(state.delta, one.backbone, client, heads)
            for client, heads in zip(make_clients(), chosen, strict=True)
        ]
        state, metrics = one.run(state, 1)
        close(state.delta["head"], mean(found)["head"])
        for name in LAYERS:
            for head in range(N_HEADS):
                sizes = np.array(
                    [n * (head in x[name]) for n, x in zip(SIZES, chosen, strict=True)]
                )
                ends = np.stack([end[name]["lora_h"][..., head, :, :] for end in found])
                expected = start[name]["lora_h"][..., head, :, :]
                if sizes.sum():
                    expected = np.tensordot(sizes / sizes.sum(), ends, axes=1)
                close(state.delta[name]["lora_h"][..., head, :, :], expected, atol=1e-5)
            assert np.all(np.asarray(state.delta[name]["lora_s"]) == 1)
    down, up = 3 * N_HEADS * RANK**2 + HEAD, [3 * n * RANK**2 + HEAD for n in FEW]
    assert metrics["downlink_bytes"].tolist() == [8 * 4 * down]
    assert metrics["uplink_bytes"].tolist() == [4 * sum(up)]


def test_a_head_that_nobody_trained_stays_to_the_bit():
    one, state = simulator(heads=(1,), n_clients=1)
    after, _ = one.run(state, 1)
    chosen = chosen_by(state, 0, 0, 1)
    for name in LAYERS:
        (head,) = chosen[name]
        before, ours = (x.delta[name]["lora_h"] for x in (state, after))
        np.testing.assert_array_equal(
            ours[..., 1 - head, :, :], before[..., 1 - head, :, :]
        )
        assert np.all(
            np.any(ours[..., head, :, :] != before[..., head, :, :], (-2, -1))
        )


def test_one_head_with_a_frozen_scale_is_fed_sb():
    def scales(factors):
        pairs = {
            layer: pair._replace(a=False, b=True)
            for layer, pair in factors.pairs.items()
        }
        rest = dict.fromkeys(factors.rest, False)
        return type(factors)(pairs, rest, factors.form)

    frozen = optax.chain(optax.masked(optax.set_to_zero(), scales), optax.sgd(RATE))
    one, state = simulator(optimizer=frozen, n_heads=1)
    method = lora_rules.fed_sb(ffm.Task(lora_problem.loss), optax.sgd(RATE), **HOW)
    delta, backbone = lora_problem.make_trees(rank=RANK, squares=True)
    population = ffm.Population.from_clients(make_clients())
    other = ffm.Simulator(
        method, population, backbone=backbone, cohort_size=8, devices=1
    )
    same, _ = other.run(other.init(delta), 2)
    state, _ = one.run(state, 2)
    for name in LAYERS:
        close(
            state.delta[name]["lora_h"][..., 0, :, :],
            same.delta[name]["lora_r"],
            atol=1e-5,
        )


def test_a_client_that_drops_out_equals_a_smaller_cohort():
    gone = ffm.Behaviour(drops=lambda client, round_index, key: client > 0)
    one, state = simulator(n_clients=2, behaviour=gone)
    other, same = simulator(n_clients=1)
    close(one.run(state, 1)[0].delta, other.run(same, 1)[0].delta)


def test_impossible_heads_are_refused():
    with pytest.raises(ValueError, match=r"heads to be one whole number >= 1.*\[0\]"):
        simulator(heads=[0])
    with pytest.raises(ValueError, match=r"at most 2 heads a client, .* got 3"):
        simulator(heads=[3] * 8)
    with pytest.raises(ValueError, match="each of 8 clients, got 1"):
        simulator(heads=[1])
    method = lora_rules.ravan(ffm.Task(loss), optax.sgd(RATE), **HOW)
    with pytest.raises(ValueError, match=r"lora_h beside lora_s .*\['w'\]"):
        method.init({"w": jnp.zeros(3)}, jax.random.key(0), ffm.Setting(2, 2))
