"""DiLoCo and streaming DiLoCo: limits, numpy and optax loops, bytes."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drift_problem import TASK, centres, clients, run

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import diloco, fedsgd, streaming_diloco
from fedjax_fm.algorithms.fragments import fragment, with_fragment

H, A = centres()
DATA = clients(H, A)
ETA = 0.1
START = np.full(3, 0.5, np.float32)


# DiLoCo


def test_one_inner_step_and_a_plain_outer_one_are_gradient_descent():
    plain, walk = optax.sgd(1.0), {"local_steps": 1, "batch_size": 1}
    state, _, _ = run(diloco(TASK, optax.sgd(ETA), plain, **walk), DATA, 3)
    descent, _, _ = run(fedsgd(TASK, optax.sgd(ETA), epochs=1, batch_size=1), DATA, 3)
    np.testing.assert_allclose(state.delta, descent.delta, rtol=1e-6)


def test_without_kept_moments_it_is_fedavg_with_nesterov():
    walk, outer = {"local_steps": 4, "batch_size": 1}, (0.7, 0.9)
    nesterov = optax.sgd(outer[0], momentum=outer[1], nesterov=True)
    plain, _, _ = run(ffm.fedavg(TASK, optax.adamw(ETA), nesterov, **walk), DATA, 3)
    fresh = diloco(TASK, optax.adamw(ETA), keep_moments=False, **walk)
    state, _, _ = run(fresh, DATA, 3)
    np.testing.assert_array_equal(state.delta, plain.delta)
    kept, _, _ = run(diloco(TASK, optax.adamw(ETA), **walk), DATA, 3)
    assert np.abs(np.asarray(kept.delta) - plain.delta).max() > 1e-3


def inner_loop(inner, k, w, moments, n_steps):
    for _ in range(n_steps):
        gradient = jnp.asarray(H[k]) * (w - A[k])
        updates, moments = inner.update(gradient, moments, w)
        w = optax.apply_updates(w, updates)
    return w, moments


def test_a_workers_moments_go_on_where_they_were():
    inner = optax.adamw(ETA)
    walk = {"local_steps": 4, "batch_size": 1}
    state, metrics, _ = run(diloco(TASK, inner, **walk), DATA, 3)
    w = jnp.asarray(START)
    moments, velocity = [inner.init(w) for _ in range(4)], 0.0
    for _ in range(3):
        changes = []
        for k in range(4):
            end, moments[k] = inner_loop(inner, k, w, moments[k], 4)
            changes.append(np.asarray(w - end))
        mean = np.mean(changes, 0)
        velocity = 0.9 * velocity + mean
        w = w - 0.7 * (mean + 0.9 * velocity)
    np.testing.assert_allclose(state.delta, w, rtol=1e-4)
    assert int(state.carry.clients[0].count[0]) == 12
    assert metrics["uplink_bytes"].tolist() == [4 * 12] * 3


# Fragments


def test_fragments_are_every_nth_row_and_make_up_the_tree():
    tree = {
        "layers": jnp.arange(14.0).reshape(7, 2),
        "a": jnp.ones(2),
        "b": jnp.zeros(()),
    }
    parts = [fragment(tree, p, 3) for p in range(3)]
    np.testing.assert_array_equal(parts[1][-1], tree["layers"][1::3])
    assert sum(x.size for part in parts for x in part) == 14 + 2 + 1
    copy = {name: jnp.full_like(x, jnp.nan) for name, x in tree.items()}
    for p, part in enumerate(parts):
        copy = with_fragment(copy, part, p, 3)
    for name, x in tree.items():
        np.testing.assert_array_equal(copy[name], x)


def streaming(fragments, alpha=0.0, delay=0, steps=4, inner=None, outer=None):
    return streaming_diloco(
        TASK,
        inner or optax.sgd(ETA),
        outer or optax.sgd(0.7, momentum=0.9, nesterov=True),
        fragments=fragments,
        alpha=alpha,
        delay=delay,
        local_steps=steps,
        batch_size=1,
    )


def test_one_fragment_that_is_taken_up_whole_is_diloco():
    inner = optax.adam(ETA)
    plain, _, _ = run(diloco(TASK, inner, local_steps=4, batch_size=1), DATA, 3)
    state, _, _ = run(streaming(1, inner=inner), DATA, 3)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-6)


def test_what_the_servers_say_never_counts_with_alpha_one():
    """Then every worker trains alone."""
    state, _, _ = run(streaming(3, alpha=1.0, delay=1, steps=6), DATA, 4)
    alone = A + (1 - ETA * H) ** 24 * (START - A)
    np.testing.assert_allclose(state.carry.clients.delta, alone, rtol=1e-4)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_rounds_are_those_of_the_listing(delay):
    """Two fragments of three numbers, two steps each, half of the own kept."""
    outer = optax.sgd(0.5)
    state, metrics, _ = run(streaming(2, 0.5, delay, outer=outer), DATA, 3)
    server, own = START.astype(float), np.tile(START, (4, 1)).astype(float)
    anchor = own.copy()
    for t in range(6):
        p, before = t % 2, (t - 1) % 2
        came = server[before::2].copy()
        own = A + (1 - ETA * H) ** delay * (own - A)
        own[:, before::2] = 0.5 * own[:, before::2] + 0.5 * came
        own = A + (1 - ETA * H) ** (2 - delay) * (own - A)
        anchor[:, before::2] = came
        mean = (anchor[:, p::2] - own[:, p::2]).mean(0)
        server[p::2] -= 0.5 * mean
    np.testing.assert_allclose(state.delta, server, rtol=1e-4)
    np.testing.assert_allclose(state.carry.clients.delta, own, rtol=1e-4)
    # as many bytes a round as DiLoCo, in two parts
    assert metrics["uplink_bytes"].tolist() == [4 * 12] * 3
    assert metrics["downlink_bytes"].tolist() == [4 * 12] * 3


def test_four_bits_are_an_eighth_and_the_peak_is_a_part():
    """64 rows of 32: DiLoCo's 8192 bytes a round; nf4 adds 4 bytes a block of 64."""

    def loss(w, backbone, batch, key):
        return jnp.sum((w - batch["a"][:, None, None]) ** 2, axis=(1, 2)), {}

    method = streaming_diloco(
        ffm.Task(loss), optax.sgd(ETA), fragments=4, local_steps=4, batch_size=1
    )
    data = [{"a": np.ones(1, np.float32)}]
    start = np.zeros((64, 32), np.float32)
    how = {"start": start, "uplink": channels.nf4(block_size=64)}
    _, metrics, simulator = run(method, data, 1, **how)
    assert metrics["uplink_bytes"].tolist() == [8192 // 8 + 2048 // 64 * 4]
    assert metrics["downlink_bytes"].tolist() == [8192]
    ups = [bill.up for bill in simulator.messages.bills]
    assert ups == [1152 // 4] * 4


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="multiple of fragments=3, got local_steps=4"):
        streaming(3)
    with pytest.raises(ValueError, match="0 <= delay <= 2, got delay=3"):
        streaming(2, delay=3)
    with pytest.raises(ValueError, match="fragment 1 of 4 has no parameter"):
        run(streaming(4), DATA)
