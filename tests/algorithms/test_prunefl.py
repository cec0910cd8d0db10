"""PruneFL: the adaptive step by brute force, and its rounds by a loop in numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from small_network import mean, moved, run, slope

import fedjax_fm as ffm
from fedjax_fm.algorithms import RoundTime, prunefl, prunefl_first_stage
from fedjax_fm.algorithms.pruning.prunefl_step import most_per_second
from fedjax_fm.population import samplers

RATE, STEPS, SIZES = 0.05, 2, (6, 3, 5)
TASK = ffm.Task(mlp_loss)
WALK = {"local_steps": STEPS, "batch_size": 8}
CLIENTS = make_clients(sizes=SIZES)
DELTA, BACKBONE = make_trees()
TIME = RoundTime(constant=2.0, entry={"^w$": 0.7, "v": 0.3})


def make(server=None, **how):
    how = {"time": TIME, "every": 2, "dropped": 0.5, "halved_every": 4.0} | WALK | how
    return prunefl(TASK, optax.sgd(RATE), server, **how)


def after(rounds, method, **how):
    _, state, metrics = run(method, CLIENTS, DELTA, rounds, BACKBONE, **how)
    return state, metrics


def gamma(gains, seconds, mask, gain, constant):
    return (gain + gains[mask].sum()) / (constant + seconds[mask].sum())


STEP = jax.jit(most_per_second)


@pytest.mark.parametrize("seed", range(8))
def test_the_step_is_the_best_of_all_masks(seed):
    """Of all supersets of what must stay, by brute force; ties and zeros among them."""
    rng = np.random.default_rng(seed)
    n = 10
    gains = rng.choice([0, 1, 2, 5], n) * rng.choice([1.0, rng.random()], n)
    seconds = rng.choice([0, 0.2, 1, 3], n) if seed % 2 else np.full(n, 0.5)
    must = rng.random(n) < 0.3
    gain, constant = rng.choice([0.0, 2.0]), rng.choice([0.5, 4.0])
    found = np.asarray(
        STEP(*map(jnp.float32, (gains, seconds)), must, gain=gain, constant=constant)
    )
    others = np.flatnonzero(~must)
    best = -1.0
    for k in range(len(others) + 1):
        for some in itertools.combinations(others, k):
            mask = must.copy()
            mask[list(some)] = True
            best = max(best, gamma(gains, seconds, mask, gain, constant))
    assert (found >= must).all()
    own = gamma(gains, seconds, found, gain, constant)
    assert own == pytest.approx(best, rel=1e-5)


def test_gamma_never_falls_while_entries_are_added_and_equal_times_give_a_prefix():
    rng = np.random.default_rng(3)
    gains, must = rng.random(40), np.arange(40) < 4
    seconds = np.full(40, 0.1)
    found = np.asarray(
        STEP(jnp.float32(gains), jnp.float32(seconds), must, constant=0.5)
    )
    order = [i for i in np.argsort(-gains) if not must[i]]
    added = found[order]
    n_added = added.sum()
    assert 0 < n_added < len(order)
    assert added[:n_added].all()
    masks = [must.copy()]
    for i in order[:n_added]:
        masks.append(masks[-1].copy())
        masks[-1][i] = True
    values = [gamma(gains, seconds, mask, 0, 0.5) for mask in masks]
    assert (np.diff(values) > 0).all()


def test_entries_that_take_no_time_are_added_if_they_gain_anything():
    gains = jnp.array([0.0, 1e-6, 3.0, 0.0])
    found = STEP(gains, jnp.zeros(4), jnp.array([False] * 3 + [True]), constant=1.0)
    assert found.tolist() == [False, True, True, True]


def test_against_a_loop_in_numpy():
    state, metrics = after(5, make())
    stored, mask = {k: x.astype(np.float64) for k, x in DELTA.items()}, np.ones((3, 4), bool)  # fmt: skip
    squares = [{"w": 0.0, "v": 0.0} for _ in CLIENTS]
    densities, seconds = [], []
    for t in range(5):
        densities.append(mask.mean())
        seconds.append(2 + 0.7 * mask.sum() + 0.3 * 4)
        ends = []
        for k, client in enumerate(CLIENTS):
            w = {"w": stored["w"] * mask, "v": stored["v"]}
            total = {"w": 0.0, "v": 0.0}
            for _ in range(STEPS):
                g = slope(w, BACKBONE, client)
                total = {name: total[name] + g[name] for name in g}
                w = moved(w, {"w": g["w"] * mask, "v": g["v"]}, RATE)
            ends.append(w)
            n = STEPS * SIZES[k]  # examples processed
            squares[k] = {x: squares[k][x] + n * total[x] ** 2 for x in total}
        averaged = mean(ends, SIZES)
        stored = {"w": np.where(mask, averaged["w"], stored["w"]), "v": averaged["v"]}
        if (t + 1) % 2:
            continue
        gains = {x: sum(own[x] for own in squares) for x in ("w", "v")}
        squares = [{"w": 0.0, "v": 0.0} for _ in CLIENTS]
        n_kept = int(mask.sum())
        n_kept -= int(0.5 * 0.5 ** (t / 4) * n_kept + 0.5)
        size = np.where(mask, np.abs(stored["w"]), -1).ravel()
        must = np.zeros(12, bool)
        must[np.argsort(-size, kind="stable")[:n_kept]] = True
        kept, flat = must.copy(), gains["w"].ravel()
        for i in sorted(np.flatnonzero(~must), key=lambda i: -flat[i]):
            now = gamma(flat, np.full(12, 0.7), kept, gains["v"].sum(), 2 + 0.3 * 4)
            if flat[i] / 0.7 <= now:
                break
            kept[i] = True
        mask = kept.reshape(3, 4)
    server = state.carry.server
    np.testing.assert_array_equal(server.masks["w"], mask)
    assert len(set(densities)) > 1
    np.testing.assert_allclose(metrics["density"], densities, rtol=1e-6)
    np.testing.assert_allclose(metrics["estimated_seconds"], seconds, rtol=1e-6)
    for name in "wv":
        np.testing.assert_allclose(server.delta[name], stored[name], rtol=1e-3, atol=1e-5)  # fmt: skip
        kept = squares[1][name] * np.ones(DELTA[name].shape)
        held = state.carry.clients.squares[name][1]
        np.testing.assert_allclose(held, kept, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.delta["w"], stored["w"] * mask, rtol=1e-3, atol=1e-5)  # fmt: skip


def test_entries_return_from_the_value_that_they_had():
    """Pruned by hand, then all of them gain more than they cost."""
    mask = {"w": jnp.arange(12).reshape(3, 4) % 2 == 0}
    free = RoundTime(constant=1.0, entry=0.0)
    state, metrics = after(1, make(every=1, time=free, masks=mask))
    assert metrics["density"].tolist() == [0.5]
    server = state.carry.server
    assert server.masks["w"].all()
    pruned = ~np.asarray(mask["w"])
    np.testing.assert_array_equal(server.delta["w"][pruned], DELTA["w"][pruned])
    np.testing.assert_array_equal(state.delta["w"], server.delta["w"])


def test_without_new_masks_and_with_all_entries_it_is_fedavg():
    state, metrics = after(3, make(optax.adam(0.1), every=99))
    fedavg = ffm.fedavg(TASK, optax.sgd(RATE), optax.adam(0.1), **WALK)
    plain, sent = after(3, fedavg)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
        state.delta,
        plain.delta,
    )
    assert metrics["uplink_bytes"].tolist() == sent["uplink_bytes"].tolist()


def test_bytes_both_ways():
    """Twelve entries of w and four of v; squares of all sixteen in every second round."""
    _, metrics = after(4, make(), sampler=samplers.cyclic(3, 1), cohort_size=1)
    kept = np.round(metrics["density"] * 12).astype(int) + 4
    up = 4 * kept + [0, 64, 0, 64]
    assert metrics["uplink_bytes"].tolist() == up.tolist()
    assert kept[2] < 16
    bits = np.array([0, 0, 2, 0])  # the third client lacks the new masks, as does
    bits[3] = 2  # the first one
    assert metrics["downlink_bytes"].tolist() == (4 * kept + bits).tolist()


def test_a_client_that_was_away_goes_on_adding():
    state, _ = after(2, make(), sampler=samplers.cyclic(3, 1), cohort_size=1)
    held = state.carry.clients.squares["w"]
    assert np.asarray(held[0]).any()  # round 0, nothing sent
    assert not np.asarray(held[1]).any()  # sent in round 1


def test_leaves_whose_order_a_compiled_function_changes():
    """As a tree `a.w` comes before `a_.w`, by names behind it: each keeps its own."""
    first, second = np.array([[4, 3]], "f4"), np.array([[2, 1, 1], [1, 1, 1]], "f4")
    delta = {"a": {"w": first}, "a_": {"w": second}}
    gains = {"a": np.array([[9.0, 0.0]]), "a_": np.array([[0.0, 7, 0], [0, 0, 8]])}

    def loss(delta, backbone, batch, key):
        parts = [jnp.sum(delta[k]["w"] * np.sqrt(gains[k])) for k in ("a", "a_")]
        return batch["x"] * sum(parts), {}

    time = RoundTime(constant=0.1, entry=1.0)
    how = {"time": time, "every": 1, "dropped": 0.99, "local_steps": 1, "batch_size": 1}
    method = prunefl(ffm.Task(loss), optax.sgd(1e-3), **how)
    _, state, _ = run(method, [{"x": np.ones(1, "f4")}], delta, 1)
    masks = state.carry.server.masks
    assert masks["a.w"].tolist() == [[True, False]]
    assert masks["a_.w"].tolist() == [[True, True, False], [False, False, True]]
    assert int(state.carry.server.version) == 1


def test_first_masks_come_from_one_clients_examples():
    how = {"time": TIME, "backbone": BACKBONE, "every": 1, "batch_size": 8}
    found = prunefl_first_stage(TASK, optax.sgd(RATE), DELTA, CLIENTS[0], **how)
    masks = found.masks
    assert 0 < masks["w"].sum() < 12
    few = {"times": 1, "change": 10.0} | how
    first = prunefl_first_stage(TASK, optax.sgd(RATE), DELTA, CLIENTS[0], **few).masks
    alone = make(every=1, dropped=0.3, halved_every=1e9, local_steps=5)
    _, state, _ = run(alone, CLIENTS[:1], DELTA, 1, BACKBONE, seed=0)
    np.testing.assert_array_equal(first["w"], state.carry.server.masks["w"])
    _, metrics = after(1, make(masks=masks))
    kept = int(masks["w"].sum()) + 4
    assert metrics["downlink_bytes"].tolist() == [3 * (4 * kept + 2)]


def steps_alone(rounds, delta=DELTA):
    """Weights of the first client after some rounds of two steps, in numpy."""
    w = {name: leaf.astype(np.float64) for name, leaf in delta.items()}
    for _ in range(rounds * STEPS):
        w = moved(w, slope(w, BACKBONE, CLIENTS[0]), RATE)
    return w


def closeness(w):
    """The score of `close_loss`: minus ten plus what is left of the error."""
    return np.mean(10 - np.abs(np.tanh(CLIENTS[0]["x"] @ (BACKBONE["w"] + w["w"])) @ w["v"] - CLIENTS[0]["y"]))  # fmt: skip


def close_loss(delta, backbone, batch, key):
    losses, _ = mlp_loss(delta, backbone, batch, key)
    return losses, {"close": 10 - jnp.sqrt(losses)}


def test_nothing_is_pruned_before_the_score_reaches_the_threshold():
    """Looked at every two rounds; against steps in numpy, which say when that is."""
    scores = [closeness(steps_alone(rounds)) for rounds in range(0, 12, 2)]
    assert (np.diff(scores) > 0).all()
    threshold = (scores[2] + scores[3]) / 2  # between the looks after 4 and 6 rounds
    how = {"time": TIME, "backbone": BACKBONE, "every": 3, "times": 1, "change": 10.0}
    how |= WALK | {"score": "close", "threshold": threshold, "look_every": 2}
    rule = (ffm.Task(close_loss), optax.sgd(RATE), DELTA, CLIENTS[0])
    found = prunefl_first_stage(*rule, **how)
    assert found.rounds == 6 + 3
    start = {k: jnp.float32(x) for k, x in steps_alone(6).items()}
    alone = make(every=3, dropped=0.3, halved_every=1e9)
    _, state, _ = run(alone, CLIENTS[:1], start, 3, BACKBONE, seed=0)
    np.testing.assert_array_equal(found.masks["w"], state.carry.server.masks["w"])
    np.testing.assert_allclose(found.delta["w"], state.delta["w"], rtol=1e-4, atol=1e-6)
    never = prunefl_first_stage(*rule, **how | {"threshold": 10.0, "most_rounds": 7})
    assert never.rounds == 7
    assert never.masks["w"].all()
    np.testing.assert_allclose(never.delta["w"], steps_alone(7)["w"], rtol=1e-4)


def test_bytes_of_the_first_stage():
    """Down the sixteen weights; up those of w that are kept, v, and twelve bits."""
    how = {"time": TIME, "backbone": BACKBONE, "every": 1, "batch_size": 8}
    rule = (TASK, optax.sgd(RATE), DELTA, CLIENTS[0])
    found = prunefl_first_stage(*rule, **how)
    n_kept = int(found.masks["w"].sum())
    assert n_kept < 12
    assert found.uplink_bytes == 4 * (n_kept + 4) + 2
    assert found.downlink_bytes == 4 * 16
    at_server = prunefl_first_stage(*rule, **how, is_server=True)
    assert (at_server.uplink_bytes, at_server.downlink_bytes) == (0, 0)
    np.testing.assert_array_equal(at_server.masks["w"], found.masks["w"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"time": RoundTime(0.0, 1.0)}, "constant=0.0"),
        ({"time": RoundTime(1.0, -1.0)}, "entry=-1.0"),
        ({"time": RoundTime(1.0, {"(": 1.0})}, "regular expression"),
        ({"every": 0}, "every=0"),
        ({"dropped": 1.0}, "dropped=1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        make(**how)


def test_what_does_not_fit_the_delta_is_refused():
    with pytest.raises(TypeError, match="expected time to be a RoundTime"):
        make(time=1.0)
    with pytest.raises(ValueError, match=r"says no time for the leaf 'v'; give ''"):
        after(1, make(time=RoundTime(1.0, {"w": 1.0})))
    with pytest.raises(ValueError, match="masks are not those of the leaves to prune"):
        after(1, make(masks={"v": jnp.ones(4, bool)}))
    how = {"time": TIME, "most_rounds": 4, "batch_size": 8}
    with pytest.raises(ValueError, match="most_rounds=4"):
        prunefl_first_stage(TASK, optax.sgd(RATE), DELTA, CLIENTS[0], **how)
    how |= {"backbone": BACKBONE, "most_rounds": 50, "threshold": 0.5}
    with pytest.raises(ValueError, match="no metric score='accuracy'"):
        prunefl_first_stage(TASK, optax.sgd(RATE), DELTA, CLIENTS[0], **how)
