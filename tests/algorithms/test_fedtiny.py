"""FedTiny: entries that come and go by a loop in numpy, and the choice among masks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from small_network import mean, moved, run, slope

import fedjax_fm as ffm
from fedjax_fm import sparsity
from fedjax_fm.algorithms import fedtiny, fedtiny_selection
from fedjax_fm.algorithms.pruning.fedtiny_candidates import candidate_masks
from fedjax_fm.algorithms.pruning.fedtiny_exchange import largest_of_pruned, spread
from fedjax_fm.algorithms.pruning.fedtiny_plan import LayerPlan

RATE, STEPS, SIZES = 0.05, 2, (6, 3, 5)
TASK = ffm.Task(mlp_loss)
WALK = {"local_steps": STEPS, "batch_size": 8}
CLIENTS = make_clients(sizes=SIZES)
DELTA, BACKBONE = make_trees()
MASKS = {"w": np.arange(12).reshape(3, 4) % 2 == 0, "v": np.arange(4) < 2}


def make(server=None, **how):
    how = {"masks": MASKS, "every": 2, "stop": 8, "share": 0.4} | WALK | how
    return fedtiny(TASK, optax.sgd(RATE), server, **how)


def after(rounds, method):
    _, state, metrics = run(method, CLIENTS, DELTA, rounds, BACKBONE)
    return state, metrics


def largest(scores, k):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


def exchanged(weight, mask, gradients, n):
    """Reports of every client, their mean, what comes and what goes."""
    total = np.zeros(mask.shape)
    for share, gradient in gradients:
        size = np.where(mask, -1, np.abs(gradient))
        total += share * np.where(largest(size, n), gradient, 0)
    grown = largest(np.where(mask, -1, np.abs(total)), n)
    stays = largest(np.where(mask, np.abs(weight), -1), mask.sum() - n)
    return grown | stays


def test_against_a_loop_in_numpy():
    """Blocks in turn, the last one first; the schedule ends in exchanges of nothing."""
    method = make(blocks=["w", "v"])
    state, metrics = after(9, method)
    masks = {name: mask.copy() for name, mask in MASKS.items()}
    delta = {name: DELTA[name] * masks[name] for name in DELTA}
    n_moved, shares = [], np.array(SIZES) / sum(SIZES)
    for done in range(1, 10):
        ends = []
        for client in CLIENTS:
            w = delta
            for _ in range(STEPS):
                g = slope(w, BACKBONE, client)
                w = moved(w, {name: g[name] * masks[name] for name in g}, RATE)
            ends.append(w)
        delta = mean(ends, SIZES)
        n_moved.append(0)
        if done % 2 or done > 8:
            continue
        name = ("v", "w")[(done // 2 - 1) % 2]
        share = 0.4 * (1 + math.cos(math.pi * done / 8))
        most = min(MASKS[name].sum(), (~MASKS[name]).sum())
        n = min(int(share * MASKS[name].sum() + 0.5), most)
        gradients = [
            (p, slope(w, BACKBONE, client)[name])
            for p, w, client in zip(shares, ends, CLIENTS, strict=True)
        ]
        masks[name] = exchanged(delta[name], masks[name], gradients, n)
        delta[name] = delta[name] * masks[name]
        n_moved[-1] = n
    assert sum(n > 0 for n in n_moved) >= 2
    assert metrics["moved"].tolist() == n_moved
    server = state.carry.server
    for name in "vw":
        np.testing.assert_array_equal(server.masks[name], masks[name])
        np.testing.assert_allclose(state.delta[name], delta[name], rtol=1e-3, atol=1e-5)
        assert masks[name].sum() == MASKS[name].sum()  # the density stays, exactly
        assert (metrics[f"density {name}"] == 0.5).all()


def test_the_largest_gradients_as_a_sort_has_them():
    rng = np.random.default_rng(0)
    for n, kept in ((1000, 10), (7, 3), (64, 64)):
        gradient = np.float32(rng.normal(size=n)) * (rng.random(n) < 0.8)
        mask = np.zeros(n, bool)
        mask[rng.permutation(n)[:kept]] = True
        plan = LayerPlan.of(mask, 0, 0.5)
        report = jax.jit(lambda g, m, c, plan=plan: largest_of_pruned(g, m, c, plan))
        for count in {0, plan.most // 2, plan.most}:
            found = report(gradient, mask, count)
            held = largest(np.where(mask, -1, np.abs(gradient)), count)
            dense = spread(found, plan)
            np.testing.assert_array_equal(dense, np.where(held, gradient, 0))
            assert found.values.values.shape == (plan.most,)  # no more than that
            width = max(1, (n - 1).bit_length())
            assert int(found.places.count) == math.ceil(count * width / 8)


def test_regrown_weights_start_at_zero_and_all_others_stay():
    state, metrics = after(2, make(stop=4))
    before, _ = after(2, make(every=4, stop=4))
    assert metrics["moved"][1] > 0
    new = {k: np.asarray(m) for k, m in state.carry.server.masks.items()}
    for name in "vw":
        both = new[name] & MASKS[name]
        weight, plain = (np.asarray(x.delta[name]) for x in (state, before))
        np.testing.assert_array_equal(weight[both], plain[both])
        assert not weight[~both].any()


def test_bytes_both_ways():
    """Six entries of w and two of v are kept; v's exchange is that of round two."""
    _, metrics = after(3, make(stop=4, blocks=["w", "v"]))
    n = int(metrics["moved"][1])
    report = 4 * n + math.ceil(n * 2 / 8)  # places among four take two bits
    assert metrics["uplink_bytes"].tolist() == [96, 96 + 3 * report, 96]
    bits = 3 * 2  # of sixteen flags, at first and when they change
    assert metrics["downlink_bytes"].tolist() == [96 + bits, 96, 96 + bits]


def test_full_masks_are_fedavg():
    whole = {"w": np.ones((3, 4), bool)}
    state, metrics = after(3, make(masks=whole))
    plain, _ = after(3, ffm.fedavg(TASK, optax.sgd(RATE), **WALK))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
        state.delta,
        plain.delta,
    )
    assert metrics["moved"].tolist() == [0, 0, 0]


# The choice among masks


def scaled_loss(delta, backbone, batch, key):
    """A network whose input is normalised by statistics that the backbone holds."""
    x = (batch["x"] - backbone["mean"]) / jnp.sqrt(backbone["square"] + 1)
    hidden = jnp.tanh(x @ delta["w"])
    return (hidden @ delta["v"] - batch["y"]) ** 2, {}


def moments(delta, backbone, batch, key):
    pruned = batch["x"] * (1 + jnp.sum(delta["w"] != 0))
    return {"mean": pruned, "square": pruned**2}


def with_moments(delta, backbone, found):
    return delta, found


FIRST = {"mean": np.zeros(3, np.float32), "square": np.zeros(3, np.float32)}


def choose(**how):
    how = {"density": 0.5, "candidates": 4, "batch_size": 4} | how
    how |= {"initial": FIRST, "statistics": moments, "with_statistics": with_moments}
    return fedtiny_selection(ffm.Task(scaled_loss), pruned="w|v", **how)


def chosen(clients=CLIENTS, **how):
    return run(choose(**how), clients, DELTA, 1, FIRST)


def test_the_choice_against_numpy():
    simulator, state, metrics = chosen()
    server = state.carry.server
    losses = []
    for c in range(4):
        kept = {name: DELTA[name] * np.asarray(server.masks[name][c]) for name in "wv"}
        factor = 1 + np.sum(kept["w"] != 0)
        x = np.concatenate([client["x"] for client in CLIENTS]) * factor
        mean, square = x.mean(0), (x**2).mean(0)
        np.testing.assert_allclose(server.statistics["mean"][c], mean, rtol=1e-4, atol=1e-5)  # fmt: skip
        np.testing.assert_allclose(server.statistics["square"][c], square, rtol=1e-4)
        raw = np.concatenate([client["x"] for client in CLIENTS])
        y = np.concatenate([client["y"] for client in CLIENTS])
        hidden = np.tanh((raw - mean) / np.sqrt(square + 1) @ kept["w"])
        losses.append(np.mean((hidden @ kept["v"] - y) ** 2))
    np.testing.assert_allclose(server.losses, losses, rtol=1e-4)
    best = int(np.argmin(losses))
    assert int(server.chosen) == best == metrics["chosen"][0]
    own, backbone = simulator.model(state)
    mask = server.chosen_masks()["w"]
    np.testing.assert_array_equal(own["w"], DELTA["w"] * np.asarray(mask))
    np.testing.assert_array_equal(backbone["mean"], server.statistics["mean"][best])
    assert float(metrics["worst_loss"][0]) == pytest.approx(max(losses), rel=1e-4)


def test_one_candidate_is_magnitude_pruning():
    _, state, _ = chosen(candidates=1)
    expected = sparsity.top_masks(sparsity.magnitude(DELTA), 0.5)
    jax.tree.map(
        np.testing.assert_array_equal, state.carry.server.chosen_masks(), expected
    )


def test_alike_clients_have_the_statistics_of_one():
    _, all_of_them, _ = chosen([CLIENTS[0]] * 3)
    _, one, _ = chosen([CLIENTS[0]])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
        all_of_them.carry.server.statistics,
        one.carry.server.statistics,
    )


def test_candidates_differ_and_are_no_denser_than_asked():
    weights = {"a": np.random.default_rng(0).normal(size=(40, 50)), "b": np.ones((10, 30))}  # fmt: skip
    found = candidate_masks(weights, 0.05, 8, jax.random.key(0), spread=0.9)
    counts = {name: np.asarray(mask).reshape(8, -1).sum(1) for name, mask in found.items()}  # fmt: skip
    assert len(set(counts["a"].tolist())) > 4
    assert counts["a"][0] == 100
    assert counts["b"][0] == 15
    assert (counts["a"] + counts["b"] <= 0.05 * 2300 + 1).all()


def test_the_choices_bytes_both_ways():
    """Four candidates of eight kept entries and sixteen flags, six statistics of each."""
    _, state, metrics = chosen()
    kept = 4 * sum(int(mask.sum()) for mask in state.carry.server.masks.values())
    statistics = 4 * 4 * 6
    assert metrics["downlink_bytes"].tolist() == [3 * (kept + 8 + statistics)]
    assert metrics["uplink_bytes"].tolist() == [3 * (statistics + 16)]


def test_the_second_stage_takes_what_the_first_found():
    _, state, _ = chosen()
    masks = state.carry.server.chosen_masks()
    _, metrics = after(2, make(masks=masks))
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert metrics["density"].tolist() == [kept / 16] * 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"masks": {"w": np.zeros((3, 4), bool)}}, "keeps 0 entries; expected bool, and one at least, or the layer is dead"),
        ({"masks": {"w": np.ones((3, 4))}}, r"float64\[3, 4\]"),
        ({"stop": 1}, "stop=1"),
        ({"share": 0.6}, "share=0.6"),
        ({"blocks": ["w"]}, "to name the leaf 'v', 0 do"),
        ({"blocks": ["w", "w", "v"]}, "to name the leaf 'w', 2 do"),
        ({"blocks": "w"}, "blocks='w'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        make(**how)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="masks=None"):
        make(masks=None)
    with pytest.raises(ValueError, match=r"masks\['w'\] of shape \[2\] fits no leaf"):
        after(1, make(masks={"w": np.ones(2, bool)}))
    with pytest.raises(TypeError, match="expected statistics to be a function"):
        fedtiny_selection(TASK, density=0.5, initial=(), statistics=1, with_statistics=with_moments, batch_size=1)  # fmt: skip
    with pytest.raises(ValueError, match="density=0"):
        choose(density=0)
    wrong = fedtiny_selection(
        ffm.Task(scaled_loss),
        density=0.5,
        initial=FIRST["mean"],
        statistics=moments,
        with_statistics=with_moments,
        batch_size=4,
    )
    with pytest.raises(ValueError, match="initial and statistics are of different"):
        run(wrong, CLIENTS, DELTA, 1, FIRST)
