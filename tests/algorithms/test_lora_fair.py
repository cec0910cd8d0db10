"""LoRA-FAIR: its correction against least squares on whole matrices in numpy."""

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

from fedjax_fm.algorithms.lora_rules.factors import Pair, product
from fedjax_fm.algorithms.lora_rules.lora_fair import closest, most_similar

PENALTY = 0.05
EQUAL = (None,) * len(SIZES)


def ridge(a, b, whole, penalty):
    """b after argmin |whole - a b'|^2 + penalty |b' - b|^2; a [in, r], b [r, out]."""
    rank = a.shape[1]
    tall = np.concatenate([a, np.sqrt(penalty) * np.eye(rank)])
    wanted = np.concatenate([whole - a @ b, np.zeros((rank, b.shape[1]))])
    return b + np.linalg.lstsq(tall, wanted, rcond=None)[0]


def products(tree, name):
    return tree[name]["lora_a"] @ tree[name]["lora_b"]


def cosine_distance(whole, found):
    return 1 - np.sum(whole * found) / np.linalg.norm(whole) / np.linalg.norm(found)


def ends(state, backbone, ranks=EQUAL):
    clients = zip(make_clients(), ranks, strict=True)
    return [train(state.delta, backbone, *client) for client in clients]


@pytest.mark.parametrize("ranks", [EQUAL, MIXED], ids=["equal", "mixed"])
def test_b_solves_the_penalised_least_squares(ranks):
    how = () if ranks[0] is None else (ranks,)
    one, state, _ = simulated("lora_fair", *how, penalty=PENALTY)
    found = ends(state, one.backbone, ranks)
    after, metrics = one.run(state, 1)
    average = mean(found)
    close(after.delta["head"], average["head"])
    for name in LAYERS:
        a, b = average[name]["lora_a"], average[name]["lora_b"]
        whole = mean([products(end, name) for end in found])
        close(after.delta[name]["lora_a"], a)
        ours = np.asarray(after.delta[name]["lora_b"])
        for layer in np.ndindex(a.shape[:-2]):
            expected = ridge(a[layer], b[layer], whole[layer], PENALTY)
            close(ours[layer], expected, atol=2e-5)
            # nearer to the clients' mean than the mean of the factors is
            missed = [
                np.linalg.norm(whole[layer] - a[layer] @ x)
                for x in (ours[layer], b[layer])
            ]
            assert missed[0] < missed[1]
    assert metrics["uplink_bytes"][0] == metrics["downlink_bytes"][0]


def pairs(seed=0, rank=2, rows=6):
    """(a pair, a stack of rows whose product it is to come close to), [rows, 2, n]."""
    rng = np.random.default_rng(seed)

    def draw(n, width):
        return rng.normal(size=(n, 2, width)).astype(np.float32)

    return Pair(draw(rank, 7), draw(rank, 5)), Pair(draw(rows, 7), draw(rows, 5))


def test_what_is_left_is_orthogonal_to_the_rows_of_a():
    pair, update = pairs()
    moved = closest(pair, update, 1e-6)
    left = np.asarray(product(update) - product(moved))
    np.testing.assert_allclose(np.einsum("rli,lio->lro", pair.a, left), 0, atol=1e-3)
    before = np.linalg.norm(product(update) - product(pair), axis=(-2, -1))
    assert (np.linalg.norm(left, axis=(-2, -1)) < before).all()


def test_rows_in_the_span_of_a_are_reached_exactly():
    pair, update = pairs()
    mixing = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    update = update._replace(a=jnp.einsum("sr,r...i->s...i", mixing, pair.a))
    moved = closest(pair, update, 1e-7)
    np.testing.assert_allclose(product(moved), product(update), atol=1e-4)


def test_a_common_a_or_a_large_penalty_changes_nothing():
    pair, update = pairs()
    same = Pair(jnp.concatenate([pair.a] * 3) / 3, jnp.concatenate([pair.b] * 3))
    np.testing.assert_allclose(closest(pair, same, 0.1).b, pair.b, atol=1e-5)
    np.testing.assert_allclose(closest(pair, update, 1e7).b, pair.b, atol=1e-4)


def test_the_cosine_is_at_a_minimum():
    """The paper's objective, on whole matrices: lower than at the start, and no small
    step in any direction lowers it."""
    pair, update = pairs()
    how = {"steps": 2000, "rate": 0.5}
    moved = np.asarray(most_similar(pair, update, 0.01, **how).b, np.float64)
    a, whole = np.asarray(pair.a, np.float64), np.asarray(product(update), np.float64)
    rng = np.random.default_rng(0)
    for layer in range(2):
        start = np.asarray(pair.b[:, layer], np.float64)

        def objective(b, layer=layer, start=start):
            distance = cosine_distance(whole[layer], a[:, layer].T @ b)
            return distance + 0.01 * np.linalg.norm(b - start)

        ours = moved[:, layer]
        assert objective(ours) < objective(start) - 0.1
        for _ in range(20):
            step = rng.normal(size=ours.shape)
            step *= 1e-2 / np.linalg.norm(step)
            assert objective(ours) < objective(ours + step)
    # where the penalty outweighs the gradient, nothing moves at all
    still = most_similar(pair, update, 100.0, **how)
    np.testing.assert_array_equal(still.b, pair.b)


def test_the_cosine_runs_in_a_round():
    how = {"distance": "cosine", "server_steps": 500, "server_rate": 5.0}
    one, state, _ = simulated("lora_fair", **how, penalty=1e-5)
    found = ends(state, one.backbone)
    average, whole = mean(found), mean([products(end, "outer") for end in found])
    a, b = average["outer"]["lora_a"], average["outer"]["lora_b"]
    after, _ = one.run(state, 1)
    ours = np.asarray(after.delta["outer"]["lora_b"], np.float64)
    missed = [cosine_distance(whole, a @ x) for x in (ours, b)]
    assert missed[0] < 0.9 * missed[1]
