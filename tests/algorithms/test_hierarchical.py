"""Hierarchical averaging: the flat mean through any tiers, and the bytes of each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import SIZES, make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import Tier, hierarchical

N, RATE = len(SIZES), 0.05
TASK = ffm.Task(mlp_loss)
HOW = {"local_steps": 3, "batch_size": 16}
SIZE = 4 * (12 + 4)
TIERS = {
    "none": (),
    "one aggregator": (Tier(1),),
    "three": (Tier(3),),
    "two tiers": (Tier(4), Tier(2)),
    "uneven": (Tier(3, members=[0, 0, 0, 0, 0, 0, 1, 2]), Tier(2, members=[1, 0, 0])),
    "more than clients": (Tier(2 * N),),
    "three tiers": (Tier(5), Tier(3), Tier(1)),
}


def run(algorithm, rounds=3, **how):
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(make_clients())
    settings = {"cohort_size": 5, "devices": 2, "seed": 4} | how
    one = ffm.Simulator(algorithm, population, backbone=backbone, **settings)
    return one.run(one.init(delta), rounds)


def close(a, b, tolerance=1e-5):
    def one(x, y):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance / 10)

    jax.tree.map(one, a, b)


@pytest.mark.parametrize("name", TIERS)
def test_without_lossy_channels_it_is_fedavg(name):
    """One tier or three, even or not: weighted means of weighted means."""
    server = optax.sgd(0.7, momentum=0.5)
    method = hierarchical(TASK, optax.sgd(RATE), server, tiers=TIERS[name], **HOW)
    found, metrics = run(method)
    expected, flat = run(ffm.fedavg(TASK, optax.sgd(RATE), server, **HOW))
    close(found.delta, expected.delta)
    for column in ("loss", "uplink_bytes", "downlink_bytes", "clients"):
        np.testing.assert_allclose(metrics[column], flat[column], rtol=1e-6)


def test_drop_outs_leave_a_mean_of_those_who_came():
    drops = ffm.Behaviour(drops=lambda client, round_index, key: client % 3 == 0)
    method = hierarchical(TASK, optax.sgd(RATE), tiers=TIERS["uneven"], **HOW)
    found, metrics = run(method, behaviour=drops, cohort_size=N)
    expected, _ = run(
        ffm.fedavg(TASK, optax.sgd(RATE), **HOW), behaviour=drops, cohort_size=N
    )
    close(found.delta, expected.delta)
    # clients 0, 3 and 6 are gone, and with 6 all of the second aggregator's
    assert (metrics["tier_1_senders"] == 2).all()


def test_nobody_arrives():
    nobody = ffm.Behaviour(drops=lambda client, round_index, key: client >= 0)
    method = hierarchical(TASK, optax.sgd(RATE), tiers=TIERS["two tiers"], **HOW)
    found, metrics = run(method, behaviour=nobody)
    close(found.delta, make_trees()[0])
    assert (metrics["tier_2_uplink_bytes"] == 0).all()


def test_bytes_of_every_tier():
    tiers = (Tier(4, channels.quantize(bits=8)), Tier(2))
    method = hierarchical(TASK, optax.sgd(RATE), tiers=tiers, **HOW)
    _, metrics = run(method, cohort_size=N)
    assert (metrics["uplink_bytes"] == N * SIZE).all()
    assert (metrics["tier_1_senders"] == 4).all()
    # 16 codes of a byte, and a scale for each of two leaves
    payload, _ = tiers[0].channel.encode((), make_trees()[0], jax.random.key(0))
    packed = sum(leaf.nbytes for leaf in jax.tree.leaves(payload))
    assert (metrics["tier_1_uplink_bytes"] == 4 * packed).all()
    assert packed < SIZE / 2
    assert (metrics["tier_2_uplink_bytes"] == 2 * SIZE).all()
    assert (metrics["tier_1_downlink_bytes"] == 4 * SIZE).all()
    assert (metrics["tier_2_downlink_bytes"] == 2 * SIZE).all()


def test_only_aggregators_with_a_client_send():
    tiers = (Tier(N, members=list(range(N))),)
    method = hierarchical(TASK, optax.sgd(RATE), tiers=tiers, **HOW)
    _, metrics = run(method, cohort_size=3)
    assert (metrics["tier_1_senders"] == 3).all()
    assert (metrics["tier_1_uplink_bytes"] == 3 * SIZE).all()


def test_each_tier_has_its_own_channel():
    """A tier that keeps the larger half of each mean, by hand."""
    tiers = (Tier(2, channels.top_k(0.5)),)
    method = hierarchical(TASK, optax.sgd(RATE), tiers=tiers, **HOW)
    found, _ = run(method, rounds=1, cohort_size=N)
    delta, backbone = make_trees()
    clients = make_clients()

    def trained(client):
        w = delta
        batch = jax.tree.map(jnp.asarray, client)
        for _ in range(3):
            gradient = jax.grad(lambda d: mlp_loss(d, backbone, batch, None)[0].mean())
            w = jax.tree.map(lambda x, g: x - RATE * g, w, gradient(w))
        return jax.tree.map(lambda a, b: np.asarray(a - b), delta, w)

    updates = [trained(client) for client in clients]
    total, parts = sum(SIZES), []
    for members in (range(4), range(4, 8)):
        weight = sum(SIZES[k] for k in members)
        mean = {
            name: sum(SIZES[k] * updates[k][name] for k in members) / weight
            for name in delta
        }
        payload, _ = tiers[0].channel.encode((), mean, jax.random.key(0))
        parts.append((weight, tiers[0].channel.decode(payload)))
    expected = {
        name: delta[name] - sum(w * part[name] for w, part in parts) / total
        for name in delta
    }
    close(found.delta, expected)


def test_residuals_of_a_tier_bring_back_what_it_lost():
    plain = hierarchical(TASK, optax.sgd(RATE), tiers=(Tier(3),), **HOW)
    channel = channels.error_feedback(channels.top_k(0.25))
    lossy = hierarchical(TASK, optax.sgd(RATE), tiers=(Tier(3, channel),), **HOW)
    without = hierarchical(
        TASK, optax.sgd(RATE), tiers=(Tier(3, channels.top_k(0.25)),), **HOW
    )
    goal, found, biased = (
        run(one, rounds=80, cohort_size=N)[0].delta for one in (plain, lossy, without)
    )

    def distance(a):
        parts = jax.tree.map(lambda x, y: ((x - y) ** 2).sum(), a, goal)
        return sum(jax.tree.leaves(parts))

    assert distance(found) < distance(biased)


@pytest.mark.parametrize(
    ("tiers", "kind", "said"),
    [
        ((3,), TypeError, r"tiers\[0\] to be a Tier, got 3 of type int"),
        ((Tier(0),), ValueError, r"tiers\[0\].groups >= 1"),
        ((Tier(2, "top_k"),), TypeError, r"tiers\[0\].channel.*'top_k'"),
    ],
)
def test_tiers_that_make_no_sense(tiers, kind, said):
    with pytest.raises(kind, match=said):
        hierarchical(TASK, optax.sgd(RATE), tiers=tiers, **HOW)


@pytest.mark.parametrize(
    ("tiers", "said"),
    [
        ((Tier(2, members=[0, 1]),), r"tiers\[0\].members as 8 whole numbers.*\[2\]"),
        (
            (Tier(2, members=[0, 1, 2, 0, 0, 0, 0, 0]),),
            r"members from 0 to 1, got 0 to 2",
        ),
        ((Tier(4), Tier(2, members=[0.0] * 4)), r"tiers\[1\].members as 4 whole"),
    ],
)
def test_members_that_do_not_fit_the_population(tiers, said):
    method = hierarchical(TASK, optax.sgd(RATE), tiers=tiers, **HOW)
    with pytest.raises(ValueError, match=said):
        run(method)
