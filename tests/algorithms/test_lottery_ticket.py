"""Lottery tickets: what is left, and that it stands exactly where it stood."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from small_network import run

import fedjax_fm as ffm
from fedjax_fm.algorithms import lottery_ticket

TASK = ffm.Task(mlp_loss)
WALK = {"local_steps": 2, "batch_size": 8}
CLIENTS = make_clients(sizes=(6, 3, 5))
DELTA, BACKBONE = make_trees()
RNG = np.random.default_rng(2)


def wide_loss(delta, backbone, batch, key):
    """A layer of 100 entries and one of 50, drawn to the client's x."""
    return sum(jnp.sum((w - batch["x"][:, :1, None]) ** 2, (-2, -1)) for w in delta.values()), {}  # fmt: skip


WIDE = {"a": RNG.normal(size=(10, 10)), "out": RNG.normal(size=(5, 10))}
WIDE = jax.tree.map(np.float32, WIDE)


def make(task=TASK, server=None, **how):
    how = {"levels": 2, "rounds_per_level": 2} | WALK | how
    return lottery_ticket(task, optax.sgd(0.05), server, **how)


def after(rounds, method, delta=DELTA):
    _, state, metrics = run(method, CLIENTS, delta, rounds, BACKBONE)
    return state, metrics


def test_what_is_left_after_n_levels():
    """(0.8)^n of each layer, (0.9)^n of an output layer, up to rounding."""
    how = {"levels": 4, "rounds_per_level": 1, "output": "out"}
    _, metrics = after(6, make(ffm.Task(wide_loss), **how), WIDE)
    for name, rate, n in (("a", "0.2", 100), ("out", "0.1", 50)):
        left = [(1 - Fraction(rate)) ** min(i, 4) * n for i in range(6)]
        kept = [math.ceil(x - Fraction(1, 2)) for x in left]  # halves: one more is out
        np.testing.assert_allclose(metrics[f"density {name}"] * n, kept, rtol=1e-6)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_largest_weights_return_to_where_they_started(scope):
    """Bit for bit, and the masks are those of the trained weights."""
    method = make(rate=0.5, scope=scope, pruned="w|v")
    trained, _ = after(2, ffm.fedavg(TASK, optax.sgd(0.05), **WALK))
    state, _ = after(2, method)
    masks = state.carry.server.masks
    scores = {name: np.abs(np.asarray(trained.delta[name])) for name in "vw"}
    if scope == "global":
        cut = np.sort(np.concatenate([x.ravel() for x in scores.values()]))[-8]
        expected = {name: x >= cut for name, x in scores.items()}
    else:
        halves = {name: np.sort(x.ravel())[-x.size // 2] for name, x in scores.items()}
        expected = {name: x >= halves[name] for name, x in scores.items()}
    for name, mask in expected.items():
        np.testing.assert_array_equal(masks[name], mask)
        np.testing.assert_array_equal(
            state.delta[name], np.where(mask, DELTA[name], np.float32(0))
        )


def test_leaves_that_are_not_pruned_and_moments_start_anew():
    state, _ = after(2, make(server=optax.adam(0.01)))
    np.testing.assert_array_equal(state.delta["v"], DELTA["v"])
    moments = state.carry.server.optimizer
    assert not any(np.any(x) for x in jax.tree.leaves(moments))


def test_late_rewinding_returns_to_a_later_round():
    first, _ = after(1, ffm.fedavg(TASK, optax.sgd(0.05), **WALK))
    state, _ = after(2, make(rewind_to=1))
    mask = state.carry.server.masks["w"]
    kept = np.where(mask, first.delta["w"], 0)
    np.testing.assert_allclose(state.delta["w"], kept, rtol=1e-6)
    np.testing.assert_allclose(state.delta["v"], first.delta["v"], rtol=1e-6)
    assert not np.allclose(state.delta["v"], DELTA["v"])


def test_the_control_has_the_mask_and_other_weights():
    def redraw(delta, key):
        return jax.tree.map(lambda x: jax.random.normal(key, x.shape), delta)

    state, _ = after(2, make())
    other, _ = after(2, make(redraw=redraw))
    mask = np.asarray(state.carry.server.masks["w"])
    np.testing.assert_array_equal(other.carry.server.masks["w"], mask)
    assert (np.asarray(state.delta["w"]) != other.delta["w"])[mask].all()
    assert not np.any(np.asarray(other.delta["w"])[~mask])

    def wrong(delta, key):
        return {"w": delta["w"]}

    with pytest.raises(ValueError, match=r"redraw makes another tree .*missing leaves"):
        after(1, make(redraw=wrong))


def test_the_last_level_is_trained_to_the_end():
    state, metrics = after(7, make(levels=1))
    assert int(state.carry.server.own.level) == 1
    assert metrics["density"].tolist() == pytest.approx([1, 1] + [10 / 12] * 5)
    moved = np.asarray(state.delta["w"]) != DELTA["w"]
    assert moved[np.asarray(state.carry.server.masks["w"])].all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rate": 0.0}, "rate=0.0"),
        ({"levels": 0}, "levels=0"),
        ({"rewind_to": 3}, "rewind_to=3"),
        ({"output": "out", "scope": "global"}, "output='out' has a rate of its own"),
    ],
)
def test_what_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        make(**how)
