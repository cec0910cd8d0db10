"""How cohorts are laid out in blocks and over devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.engine.plan import Plan, assign, make_plan

assigned = jax.jit(assign, static_argnums=2)


@pytest.mark.parametrize(
    "plan", [Plan(1, 1, 12), Plan(2, 3, 2), Plan(4, 1, 4), Plan(3, 2, 3)], ids=str
)
@pytest.mark.parametrize(
    "most", [4, 2**30], ids=["small loads", "loads that fill a word"]
)
def test_everyone_has_one_slot_the_longest_first(plan, most):
    rng = np.random.default_rng(plan.slots)
    load = rng.integers(0, most, 12).astype(np.int32)
    active = rng.random(12) < 0.7
    slots, used = (
        np.asarray(x) for x in assigned(jnp.asarray(active), jnp.asarray(load), plan)
    )
    assert slots.shape == used.shape == (plan.n_devices, plan.n_blocks, plan.block_size)
    assert sorted(slots[used]) == sorted(np.flatnonzero(active))
    # Row after row of blocks the loads fall: exactly where they are small, by 1/2**27
    # of the largest where they fill a word.
    rows = [
        load[row[mask]]
        for row, mask in zip(slots.swapaxes(0, 1), used.swapaxes(0, 1), strict=True)
        if mask.any()
    ]
    step = 0 if most < 1000 else load.max() / 2**27
    assert all(
        above.min() >= below.max() - step for above, below in itertools.pairwise(rows)
    )


def test_the_order_is_a_stable_sort_by_falling_load():
    load = np.random.default_rng(0).integers(0, 50, 1000).astype(np.int32)
    slots, used = assigned(jnp.ones(1000, bool), jnp.asarray(load), Plan(1, 1, 1000))
    np.testing.assert_array_equal(
        np.asarray(slots).reshape(-1), np.argsort(-load, kind="stable")
    )
    assert used.all()


def test_the_inactive_come_last_whatever_their_load():
    active = jnp.array([True, False, True, False])
    slots, used = assigned(active, jnp.array([0, 9, 2**31 - 1, 5]), Plan(1, 1, 4))
    np.testing.assert_array_equal(np.asarray(slots).reshape(-1)[:2], [2, 0])
    np.testing.assert_array_equal(
        np.asarray(used).reshape(-1), [True, True, False, False]
    )


def test_devices_get_like_loads():
    load = np.random.default_rng(1).lognormal(3, 1, 1000).astype(np.int32) + 1
    slots, _ = assigned(jnp.ones(1000, bool), jnp.asarray(load), Plan(4, 1, 250))
    sums = load[np.asarray(slots)].sum(axis=(1, 2))
    assert sums.max() - sums.min() <= load.max()  # by no more than one client


def test_clients_that_are_alike_keep_the_samplers_order():
    slots, used = assigned(jnp.arange(5) < 3, None, Plan(1, 2, 3))
    np.testing.assert_array_equal(np.asarray(slots).reshape(-1)[:5], range(5))
    np.testing.assert_array_equal(
        np.asarray(used).reshape(-1), [True] * 3 + [False] * 3
    )


def test_the_rule_for_cpu():
    assert make_plan(10, 2, None, lane_bytes=1000, fixed_devices=False) == Plan(
        1, 10, 1
    )  # one small block: one device
    assert make_plan(10, 2, None, lane_bytes=1000) == Plan(2, 5, 1)
    assert make_plan(1000, 2, None, lane_bytes=3 * 407_080) == Plan(2, 1, 500)
    assert make_plan(3, 8, 2) == Plan(
        3, 1, 1
    )  # no more devices than clients, no wider than a device's share
