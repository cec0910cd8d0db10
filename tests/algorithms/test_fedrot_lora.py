"""FedRot-LoRA: rotations against scipy's and brute force, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_problem import (
    LAYERS,
    MIXED,
    SIZES,
    close,
    make_clients,
    mean,
    simulated,
    train,
)
from scipy.spatial.transform import Rotation

from fedjax_fm.algorithms.lora_rules.factors import Factors, Pair, product
from fedjax_fm.algorithms.lora_rules.fedrot_lora import (
    nearest_rotation,
    part_of_rotation,
    turned,
)


def rotation_of(cross):
    """In numpy, by Kabsch: the nearest of determinant +1."""
    u, _, vt = np.linalg.svd(cross)
    flip = np.ones(len(cross))
    flip[-1] = np.linalg.det(u @ vt)
    return u @ np.diag(flip) @ vt


def part_of(rotation, strength):
    """By the angle of the turn: (1 - l) I + l R has the axis of R."""
    u, _, vt = np.linalg.svd(
        (1 - strength) * np.eye(len(rotation)) + strength * rotation
    )
    return u @ vt


def turned_by_hand(end, start, round_index, strength, rank):
    """One client's delta after its rotations, in numpy."""
    end = jax.tree.map(np.copy, end)
    for name in LAYERS if round_index else ():
        a, b = end[name]["lora_a"], end[name]["lora_b"]
        for at in np.ndindex(a.shape[:-2]):
            mine, goal = (
                (a[at].T, np.asarray(start[name]["lora_a"][at]).T)
                if round_index % 2
                else (b[at], np.asarray(start[name]["lora_b"][at]))
            )
            cross = (mine @ goal.T)[:rank, :rank]
            turn = part_of(rotation_of(cross), strength)
            a[(*at, slice(None), slice(rank))] = a[at][:, :rank] @ turn
            b[(*at, slice(rank))] = turn.T @ b[at][:rank]
    return end


@pytest.mark.parametrize("ranks", [(3,) * len(SIZES), MIXED], ids=["equal", "mixed"])
def test_rounds_are_means_of_turned_factors(ranks):
    one, state, _ = simulated("fedrot_lora", ranks, strength=0.7)
    for round_index in range(3):
        found = []
        for client, rank in zip(make_clients(), ranks, strict=True):
            end = train(state.delta, one.backbone, client, rank)
            how = (state.delta, round_index, 0.7, rank)
            found.append(turned_by_hand(end, *how))
        state, metrics = one.run(state, 1)
        close(state.delta, mean(found), rtol=1e-4, atol=2e-5)
    other, same, _ = simulated("fedit", ranks)
    _, expected = other.run(same, 1)
    for way in ("uplink_bytes", "downlink_bytes"):
        assert metrics[way][0] == expected[way][0]


def test_without_strength_it_is_fedit():
    one, state, _ = simulated("fedrot_lora", strength=0.0)
    other, same, _ = simulated("fedit")
    close(one.run(state, 3)[0].delta, other.run(same, 3)[0].delta)


def draw_factors(seed=0, rank=3):
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(rank, 2, n)).astype(np.float32) for n in (6, 5))
    return Factors({"layer": Pair(a, b)}, {}, ())


def with_pair(f, factors):
    return Factors({"layer": factors.pairs["layer"].map(f)}, {}, ())


def test_pairs_that_differ_by_a_rotation_become_equal():
    factors = draw_factors()
    turn = Rotation.random(random_state=0).as_matrix().astype(np.float32)
    other = with_pair(lambda x: jnp.einsum("rs,s...n->r...n", turn, x), factors)
    for round_index in (1, 2):
        back = turned(other, factors, jnp.int32(round_index), 1.0, jnp.int32(3))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), back, factors
        )
    still = turned(other, factors, jnp.int32(0), 1.0, jnp.int32(3))
    jax.tree.map(np.testing.assert_array_equal, still, other)


def test_products_stay_and_distances_do_not_grow():
    factors, goal = draw_factors(), draw_factors(1)
    pair, end = factors.pairs["layer"], goal.pairs["layer"]
    for round_index, side in ((1, 0), (2, 1)):
        found = turned(factors, goal, jnp.int32(round_index), 1.0, jnp.int32(3))
        ours = found.pairs["layer"]
        np.testing.assert_allclose(product(ours), product(pair), atol=1e-5)
        for at in range(2):
            after, before = (
                np.linalg.norm(x[side][:, at] - end[side][:, at]) for x in (ours, pair)
            )
            assert after < before


def test_the_nearest_rotation_is_the_best_of_many():
    rng = np.random.default_rng(0)
    cross = rng.normal(size=(4, 3, 3)).astype(np.float32)
    found = np.asarray(nearest_rotation(cross, jnp.int32(3)))
    np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-5)
    many = Rotation.random(5000, random_state=1).as_matrix()
    best = np.einsum("kij,mij->km", cross, many).max(axis=1)
    ours = np.sum(cross * found, axis=(1, 2))
    assert (ours > best - 1e-4).all()
    assert (ours < best + 0.1).all()
    nothing = nearest_rotation(jnp.zeros((3, 3)), jnp.int32(3))
    np.testing.assert_array_equal(nothing, np.eye(3))


def test_a_part_of_a_turn_has_a_part_of_its_angle():
    """About one axis by t: (1 - l) + l e^(it) points where the part of the turn ends."""
    angle, strength = 2.0, 0.3
    whole = Rotation.from_rotvec([0, 0, angle]).as_matrix().astype(np.float32)
    part = np.asarray(part_of_rotation(whole, strength))
    expected = np.angle(1 - strength + strength * np.exp(1j * angle))
    np.testing.assert_allclose(
        Rotation.from_matrix(part).as_rotvec(), [0, 0, expected], atol=1e-5
    )
    half_turn = np.diag([-1.0, -1.0, 1.0]).astype(np.float32)
    np.testing.assert_array_equal(part_of_rotation(half_turn, 0.5), np.eye(3))
