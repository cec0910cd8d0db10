"""LotteryFL against a loop in numpy: masks of clients, rewinding, means of holders."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from small_network import loss as loss_of
from small_network import moved, run, slope

import fedjax_fm as ffm
from fedjax_fm.algorithms import lotteryfl

RATE, STEPS, SIZES = 0.05, 2, (6, 3, 5)
WALK = {"local_steps": STEPS, "batch_size": 8}
CLIENTS = make_clients(sizes=SIZES)
DELTA, BACKBONE = make_trees()
LOSSES = [loss_of(DELTA, BACKBONE, client) for client in CLIENTS]


def scored(delta, backbone, batch, key):
    losses, _ = mlp_loss(delta, backbone, batch, key)
    return losses, {"accuracy": -losses}


def make(task=scored, **how):
    how = {"rate": 0.5, "threshold": -1e9} | WALK | how
    return lotteryfl(ffm.Task(task), optax.sgd(RATE), **how)


def after(rounds, method):
    simulator, state, metrics = run(method, CLIENTS, DELTA, rounds, BACKBONE)
    return simulator, state, metrics


def largest(scores, k):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


def test_against_a_loop_in_numpy():
    """A threshold that some clients pass: 12, 6, 3 entries, then 1 at r = 0.2."""
    threshold = -float(np.median(LOSSES)) * 1.001
    method = make(threshold=threshold, target_density=0.2)
    simulator, state, metrics = after(6, method)
    delta = {name: x.astype(np.float64) for name, x in DELTA.items()}
    masks, levels = [np.ones((3, 4), bool) for _ in CLIENTS], [0, 0, 0]
    counts, densities, pruned = [12, 6, 3, 1], [], []  # 1.5: halves are out
    for _ in range(6):
        sums, held = np.zeros((3, 4)), np.zeros((3, 4))
        vs, n_pruned = [], 0
        for k, client in enumerate(CLIENTS):
            w = {"w": delta["w"] * masks[k], "v": delta["v"]}
            if -loss_of(w, BACKBONE, client) > threshold and levels[k] < 3:
                levels[k] += 1
                n_pruned += 1
                score = np.where(masks[k], np.abs(w["w"]), -1)
                masks[k] = largest(score, counts[levels[k]])
                w = {"w": DELTA["w"] * masks[k], "v": DELTA["v"]}
            for _ in range(STEPS):
                g = slope(w, BACKBONE, client)
                w = moved(w, {"w": g["w"] * masks[k], "v": g["v"]}, RATE)
            sums += w["w"]
            held += masks[k]
            vs.append(w["v"])
        delta["w"] = np.where(held > 0, sums / np.maximum(held, 1), delta["w"])
        delta["v"] = np.mean(vs, 0)
        densities.append(np.mean([mask.mean() for mask in masks]))
        pruned.append(n_pruned / 3)
    assert len(set(levels)) > 1  # clients did differ
    assert (held == 0).any()  # entries of nobody
    tickets = state.carry.clients
    np.testing.assert_array_equal(tickets.masks["w"], masks)
    np.testing.assert_array_equal(tickets.level, levels)
    np.testing.assert_allclose(metrics["density"], densities, rtol=1e-5)
    np.testing.assert_allclose(metrics["pruned"], pruned, rtol=1e-5)
    for name in "wv":
        np.testing.assert_allclose(state.delta[name], delta[name], rtol=1e-3, atol=1e-5)
    own, _ = simulator.model(state, client=1)
    np.testing.assert_allclose(own["w"], delta["w"] * masks[1], rtol=1e-3, atol=1e-5)


def test_density_after_j_prunings_and_masks_that_only_lose():
    method = make(rate=0.2, target_density=0.3)
    simulator, state, metrics = after(1, method)
    before = np.asarray(state.carry.clients.masks["w"])
    shares = [metrics["density"][0]]
    for _ in range(7):
        state, metrics = simulator.run(state, 1)
        masks = np.asarray(state.carry.clients.masks["w"])
        assert (masks <= before).all()
        before = masks
        shares.append(metrics["density"][0])
    left = [np.ceil(12 * 0.8**j - 0.5) / 12 for j in range(1, 7)]  # 0.8^6 < 0.3
    np.testing.assert_allclose(shares, [*left, left[-1], left[-1]], rtol=1e-6)


def test_after_a_pruning_the_model_is_the_start_within_the_mask():
    """Without a step behind it, bit for bit, also where nobody's mask leads."""
    simulator, state, _ = after(3, make(target_density=0.2, threshold=1e9))
    assert not np.allclose(state.delta["w"], DELTA["w"])
    still = lotteryfl(
        ffm.Task(scored), optax.sgd(0.0), rate=0.5, threshold=-1e9, **WALK
    )
    simulator, state, _ = after(1, still)
    for k in range(3):
        own, _ = simulator.model(state, client=k)
        mask = state.carry.clients.masks["w"][k]
        np.testing.assert_array_equal(own["w"], np.where(mask, DELTA["w"], 0))
        np.testing.assert_array_equal(own["v"], DELTA["v"])


def test_without_prunings_it_is_the_uniform_mean():
    _, state, metrics = after(3, make(threshold=1e9))

    def alike(delta, backbone, batch, key):
        return mlp_loss(delta, backbone, batch, key)

    equal = ffm.Task(alike, lambda batch: jnp.full(8, 1.0) / batch["n"])
    clients = [
        {**client, "n": np.full(n, n, np.float32)}
        for client, n in zip(CLIENTS, SIZES, strict=True)
    ]
    fedavg = ffm.fedavg(equal, optax.sgd(RATE), **WALK)
    _, plain, _ = run(fedavg, clients, DELTA, 3, BACKBONE)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
        state.delta,
        plain.delta,
    )
    assert metrics["density"].tolist() == [1, 1, 1]


def test_bytes_both_ways():
    """All prune in rounds 0 and 1: 12, 6, 3 entries of w, four of v, masks of two bytes."""
    _, _, metrics = after(4, make(target_density=0.25))
    up = [3 * (4 * (n + 4) + bits) for n, bits in ((6, 2), (3, 2), (3, 0), (3, 0))]
    down = [3 * 4 * (n + 4) for n in (12, 6, 3, 3)]
    assert metrics["uplink_bytes"].tolist() == up
    assert metrics["downlink_bytes"].tolist() == down


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rate": 1.0}, "rate=1.0"),
        ({"target_density": 0.0}, "target_density=0.0"),
        ({"threshold": np.nan}, "threshold=nan"),
    ],
)
def test_what_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        make(**how)


def test_a_task_without_the_metric_is_refused():
    with pytest.raises(TypeError, match="score=3"):
        make(score=3)
    with pytest.raises(ValueError, match=r"score='accuracy', it has \['loss'\]"):
        after(1, make(mlp_loss))
