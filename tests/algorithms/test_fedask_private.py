"""FedASK's private clients: DP-SGD on B in numpy, the noise's size, and what is accounted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lora_problem import LAYERS, RATE, close, loss, make_clients, make_trees

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.privacy import LocalAccounting, local_spent

CLIP = 0.3
STEPS = 2


def run(n_rounds=1, clients=None, rate=RATE, **how):
    walk = {"local_steps": STEPS, "batch_size": 8, "sketch": 7}
    given = {"clip_norm": CLIP, **walk, **how}
    method = lora_rules.fedask(ffm.Task(loss), optax.sgd(rate), **given)
    clients = make_clients()[:3] if clients is None else clients
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(clients)
    one = ffm.Simulator(
        method, population, backbone=backbone, cohort_size=len(clients), devices=1
    )
    start = one.init(delta)
    return one, *one.run(start, n_rounds)


def clipped_by_hand(client, clip):
    """A client after its steps: each example's gradient of B and the head, clipped, by a
    loop; A stays.
    """
    delta, backbone = make_trees()
    for _ in range(STEPS):
        total = jax.tree.map(jnp.zeros_like, delta)
        n = len(client["x"])
        for i in range(n):
            row = {name: x[i : i + 1] for name, x in client.items()}
            slope = jax.grad(lambda d, row=row: loss(d, backbone, row, None)[0][0])(
                delta
            )
            for name in LAYERS:
                slope[name]["lora_a"] = jnp.zeros_like(slope[name]["lora_a"])
            size = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(slope)))
            share = min(1.0, clip / size) / n
            total = jax.tree.map(lambda t, g, s=share: t + s * g, total, slope)
        delta = jax.tree.map(lambda w, g: w - RATE * g, delta, total)
    return delta


@pytest.mark.parametrize("clip", [CLIP, float("inf")])
def test_without_noise_it_is_clipped_descent_on_b(clip):
    clients = make_clients()[:3]
    sizes = np.array([len(c["x"]) for c in clients], float)
    _, state, _ = run(clip_norm=clip)
    ends = [clipped_by_hand(client, clip) for client in clients]
    shares = sizes / sizes.sum()

    def mean(name):
        products = [e[name]["lora_a"] @ e[name]["lora_b"] for e in ends]
        return sum(s * np.asarray(p) for s, p in zip(shares, products, strict=True))

    delta, _ = make_trees()
    for name in LAYERS:
        found = state.delta[name]
        # all clients have the same A: the mean product has its rank, and is kept whole
        close(found["lora_a"] @ found["lora_b"], mean(name), atol=3e-5)
    heads = sum(s * np.asarray(e["head"]) for s, e in zip(shares, ends, strict=True))
    close(state.delta["head"], heads, atol=2e-6)
    assert np.abs(mean("outer") - delta["outer"]["lora_a"] @ delta["outer"]["lora_b"]).max() > 1e-3  # fmt: skip


def test_noise_has_the_size_that_is_accounted_for():
    """Of many heads after one step: deviation rate z G / m."""
    client = make_clients()[0]
    n, z = len(client["x"]), 40.0
    _, quiet, _ = run(clients=[client], local_steps=1)
    given = {"noise_multiplier": z, "local_steps": 1}
    one, _, _ = run(clients=[client], **given)
    delta, _ = make_trees()
    moved = []
    for seed in range(30):
        state, _ = one.run(one.init(delta, seed=seed), 1)
        moved.append(np.asarray(state.delta["head"] - quiet.delta["head"]))
    found = np.std(np.stack(moved))
    assert found == pytest.approx(RATE * z * CLIP / n, rel=0.15)


def test_epsilon_is_that_of_passes_and_is_reported():
    client = make_clients(sizes=(6, 6))
    accounting = LocalAccounting(n_examples=6, rounds=3, delta=1e-5)
    how = {"noise_multiplier": 30.0, "accounting": accounting, "batch_size": 3}
    # four batches of three are two passes over six examples
    one, state, metrics = run(3, clients=client, local_steps=4, **how)
    expected = [
        local_spent(30.0, accounting._replace(rounds=t), batch_size=3, passes=2).epsilon
        for t in (1, 2, 3)
    ]
    np.testing.assert_allclose(metrics["epsilon"], expected, rtol=1e-5)
    assert "one example of one client replaced" in str(one)
    with pytest.raises(ValueError, match="accounted for 3 rounds"):
        one.run(state, 1)
    # a single batch a round is drawn: amplified
    _, _, drawn = run(3, clients=client, local_steps=1, **how)
    alone = [
        local_spent(30.0, accounting._replace(rounds=t), batch_size=3).epsilon
        for t in (1, 2, 3)
    ]
    np.testing.assert_allclose(drawn["epsilon"], alone, rtol=1e-5)
    assert drawn["epsilon"][-1] < metrics["epsilon"][-1]


def test_passes_compose_as_so_many_rounds_of_whole_clients():
    accounting = LocalAccounting(n_examples=40, rounds=5, delta=1e-5)
    three = local_spent(20.0, accounting, batch_size=8, passes=3).epsilon
    whole = LocalAccounting(n_examples=40, rounds=15, delta=1e-5)
    assert three == local_spent(20.0, whole, batch_size=40).epsilon
    with pytest.raises(ValueError, match="passes=2"):
        local_spent(1.0, accounting, batch_size=8, estimator="saga", passes=2)


def test_a_small_client_stops_an_accounted_run():
    accounting = LocalAccounting(n_examples=5, rounds=2, delta=1e-5)
    how = {"noise_multiplier": 1.0, "accounting": accounting}
    with pytest.raises(Exception, match=r"finite|NaN"):
        run(1, clients=make_clients(sizes=(6, 4)), **how)


def test_refusals():
    plain = {"local_steps": 1, "batch_size": 2, "sketch": 3}
    with pytest.raises(ValueError, match=r"noise_multiplier=1.0.*clip_norm"):
        lora_rules.fedask(ffm.Task(loss), optax.sgd(0.1), noise_multiplier=1.0, **plain)
    weighted = ffm.Task(loss, lambda batch: batch["y"])
    with pytest.raises(ValueError, match="fedask: each example counts the same"):
        lora_rules.fedask(weighted, optax.sgd(0.1), clip_norm=1.0, **plain)
