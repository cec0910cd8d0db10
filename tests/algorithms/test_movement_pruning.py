"""Movement pruning against a loop in numpy: weights and scores, entries and blocks."""

import jax
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from small_network import mean, run, slope

import fedjax_fm as ffm
from fedjax_fm.algorithms import movement_pruning, soft_movement_pruning

RATE, SCORE_RATE, STEPS, SIZES = 0.05, 0.3, 2, (6, 3, 5)
TASK = ffm.Task(mlp_loss)
WALK = {"local_steps": STEPS, "batch_size": 8}
CLIENTS = make_clients(sizes=SIZES)
DELTA, BACKBONE = make_trees()
PLAN = {"final_sparsity": 0.75, "first": 1, "last": 3}
SCORED = {"score_optimizer": optax.sgd(SCORE_RATE), **WALK}


def hard(**how):
    return movement_pruning(TASK, optax.sgd(RATE), **(PLAN | SCORED | how))


def soft(**how):
    how = {"penalty": 0.7, "threshold": 0.48} | SCORED | how
    return soft_movement_pruning(TASK, optax.sgd(RATE), **how)


def after(rounds, method):
    simulator, state, metrics = run(method, CLIENTS, DELTA, rounds, BACKBONE)
    return simulator.model(state)[0], state.carry.server, metrics


def top(scores, k):
    kept = np.argsort(-scores.ravel(), kind="stable")[:k]
    mask = np.zeros(scores.size, bool)
    mask[kept] = True
    return mask.reshape(scores.shape)


def spread(blocks, sides):
    return np.repeat(np.repeat(blocks, sides[0], 0), sides[1], 1)


def gathered(x, sides):
    rows, columns = sides
    return x.reshape(3 // rows, rows, 4 // columns, columns).sum((1, 3))


def loop(rounds, mask_of, sides=(1, 1), penalty=0.0):
    """(weights, scores, densities) of all rounds, in f64."""
    delta, scores = DELTA, gathered(np.zeros((3, 4)), sides)
    densities = []
    for t in range(rounds):
        densities.append(mask_of(scores, t).mean())
        ends, marks = [], []
        for client in CLIENTS:
            w, s = delta, scores
            for _ in range(STEPS):
                mask = spread(mask_of(s, t), sides)
                g = slope({"v": w["v"], "w": w["w"] * mask}, BACKBONE, client)
                sigmoid = 1 / (1 + np.exp(-s))
                of_penalty = penalty * sigmoid * (1 - sigmoid) / s.size
                s = s - SCORE_RATE * (gathered(g["w"] * w["w"], sides) + of_penalty)
                w = {"v": w["v"] - RATE * g["v"], "w": w["w"] - RATE * g["w"] * mask}
            ends.append(w)
            marks.append({"s": s})
        delta, scores = mean(ends, SIZES), mean(marks, SIZES)["s"]
    return delta, scores, densities


def density(t):
    left = 1 - min(max(t - 1, 0), 2) / 2
    return 1 - 0.75 * (1 - left**3)


@pytest.mark.parametrize("sides", [(1, 1), (1, 2), (3, 1)])
def test_hard_against_a_loop_in_numpy(sides):
    """An entry each, parts of rows, whole columns (written as 0)."""

    def mask_of(scores, t):
        n = scores.size
        return top(scores, n - int((1 - density(t)) * n + 0.5))

    block = (0 if sides[0] == 3 else sides[0], sides[1])
    blocks = None if sides == (1, 1) else {"^w$": block}
    model, state, metrics = after(5, hard(blocks=blocks))
    delta, scores, densities = loop(5, mask_of, sides)
    np.testing.assert_allclose(state.scores["w"], scores, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(state.delta["w"], delta["w"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(state.delta["v"], delta["v"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["density"], densities, rtol=1e-6)
    mask = spread(mask_of(scores, 5), sides)
    assert 0 < mask.mean() <= 0.25
    np.testing.assert_array_equal(np.asarray(model["w"]) != 0, mask)


def test_soft_against_a_loop_in_numpy():
    def mask_of(scores, t):
        return 1 / (1 + np.exp(-scores)) > 0.48

    model, state, metrics = after(5, soft())
    delta, scores, densities = loop(5, mask_of, penalty=0.7)
    assert 0.2 < mask_of(scores, 5).mean() < 0.9
    np.testing.assert_allclose(state.scores["w"], scores, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(state.delta["w"], delta["w"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["density"], densities, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(model["w"]) != 0, mask_of(scores, 5))


def test_what_keeps_everything_is_fedavg():
    fedavg = ffm.fedavg(TASK, optax.sgd(RATE), **WALK)
    _, plain, _ = run(fedavg, CLIENTS, DELTA, 2, BACKBONE)
    for method in (hard(final_sparsity=0.0), soft(threshold=0.0)):
        model, _, _ = after(2, method)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), model, plain.delta
        )


def test_blocks_of_one_entry_are_entries():
    first, _, _ = after(4, hard())
    second, _, _ = after(4, hard(blocks={"w": (1, 1)}))
    np.testing.assert_array_equal(first["w"], second["w"])


def test_bytes_both_ways():
    """Sixteen weights, and a score for each entry or each of four columns."""
    for blocks, n in ((None, 16 + 12), ({"w": (0, 1)}, 16 + 4)):
        _, _, metrics = after(1, hard(blocks=blocks))
        assert metrics["uplink_bytes"].tolist() == [3 * 4 * n]
        assert metrics["downlink_bytes"].tolist() == [3 * 4 * n]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"last": 0}, "last=0 ends before it starts"),
        ({"scope": "row"}, "scope='row'"),
        ({"blocks": {"(": (1, 1)}}, "regular expression"),
        ({"blocks": {"w": (-1, 1)}}, "block=-1"),
    ],
)
def test_what_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        hard(**how)


def test_kinds_that_make_no_sense_are_refused():
    with pytest.raises(TypeError, match=r"blocks=\(2, 2\)"):
        hard(blocks=(2, 2))
    with pytest.raises(TypeError, match=r"got block=\[1, 2\]"):
        hard(blocks={"w": [1, 2]})
    with pytest.raises(TypeError, match="score_optimizer"):
        hard(score_optimizer=0.1)


def test_a_block_that_does_not_divide_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"2 x 4 do not divide w of shape \[3, 4\]"):
        after(1, hard(blocks={"w": (2, 0)}))
