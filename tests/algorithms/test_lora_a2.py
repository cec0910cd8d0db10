"""LoRA-A2: which components are trained, in a plain loop, and what they cost."""

import math

import jax
import numpy as np
import optax
from lora_problem import (
    HOW,
    LAYERS,
    RATE,
    SIZES,
    STEPS,
    close,
    effective,
    gradients,
    in_numpy,
    loss,
    make_clients,
    make_trees,
    mean,
    simulated,
    train,
)

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules

FEW = (2, 1, 1, 2, 1, 1, 2, 1)
D_IN, D_OUT, HEAD = 3 * 5, 2 * 5 + 7, 7


def by_component(x, kind):
    """[..., in, r] or [..., r, out] as [..., r, width]."""
    return np.swapaxes(x, -1, -2) if kind == "lora_a" else x


def choose(start, end, kind, rank):
    """{layer: bool[..., r]}, the components that this client trains."""
    other = "lora_b" if kind == "lora_a" else "lora_a"
    scores = {}
    for name in LAYERS:
        change = by_component(end[name][kind] - start[name][kind], kind)
        beside = by_component(start[name][other], other)
        scores[name] = np.linalg.norm(change, axis=-1) * np.linalg.norm(beside, axis=-1)
    everything = np.sort(np.concatenate([x.ravel() for x in scores.values()]))[::-1]
    least = everything[3 * rank - 1]  # three matrices
    return {name: x >= least for name, x in scores.items()}


def train_chosen(delta, backbone, client, kind, chosen):
    delta, backbone, client = map(in_numpy, (delta, backbone, client))
    for _ in range(STEPS):
        step = gradients(delta, backbone, client["x"], client["y"])
        delta["head"] = delta["head"] - RATE * step["head"]
        for name in LAYERS:
            mask = np.expand_dims(chosen[name], -2 if kind == "lora_a" else -1)
            moved = delta[name][kind] - RATE * mask * step[name][kind]
            delta[name] = {**delta[name], kind: moved}
    return delta


def test_rounds_are_those_of_a_plain_loop():
    one, state, _ = simulated("lora_a2", FEW)
    for kind, fixed in (("lora_b", "lora_a"), ("lora_a", "lora_b")):
        start, found, chosen = in_numpy(state.delta), [], []
        for client, rank in zip(make_clients(), FEW, strict=True):
            probe = train(start, one.backbone, client, None, (fixed,))
            chosen.append(choose(start, probe, kind, rank))
            how = (start, one.backbone, client, kind, chosen[-1])
            found.append(train_chosen(*how))
        state, metrics = one.run(state, 1)
        close(state.delta["head"], mean(found)["head"])
        for name in LAYERS:
            np.testing.assert_array_equal(state.delta[name][fixed], start[name][fixed])
            ends = np.stack([by_component(end[name][kind], kind) for end in found])
            masks = np.stack([x[name] for x in chosen])
            weights = np.array(SIZES).reshape(-1, *[1] * (masks.ndim - 1)) * masks
            sums = np.sum(weights[..., None] * ends, axis=0)
            count = weights.sum(axis=0)[..., None]
            old = by_component(start[name][kind], kind)
            expected = np.where(count > 0, sums / np.maximum(count, 1), old)
            close(
                by_component(np.asarray(state.delta[name][kind]), kind),
                expected,
                atol=1e-5,
            )
        # nine components: six of five or five inputs or outputs, three of seven
        width = {"lora_a": (5, 5), "lora_b": (5, 7)}[kind]
        numbers = sum(
            width[0] * x["inner"].sum() + width[1] * x["outer"].sum() + HEAD
            for x in chosen
        )
        maps = 8 * (math.ceil(6 / 8) + math.ceil(3 / 8))
        assert metrics["uplink_bytes"].tolist() == [4 * numbers + maps]
    assert sum(x["inner"].sum() + x["outer"].sum() for x in chosen) == 3 * sum(FEW)


def test_with_all_components_it_is_rolora():
    one, state, _ = simulated("lora_a2")
    other, same, _ = simulated("rolora")
    for _ in range(2):
        state, bill = one.run(state, 1)
        same, expected = other.run(same, 1)
        close(state.delta, same.delta)
        assert bill["downlink_bytes"][0] == expected["downlink_bytes"][0]
        assert bill["uplink_bytes"][0] == expected["uplink_bytes"][0] + 8 * 2


def test_a_component_that_all_chose_is_averaged_exactly():
    """One client more or less, whole ranks: effective weights are the clients' mean."""
    one, state, _ = simulated("lora_a2", (3,) * 8)
    found = [
        train(state.delta, one.backbone, c, None, ("lora_a",)) for c in make_clients()
    ]
    after, _ = one.run(state, 1)
    whole = effective(after.delta, one.backbone)
    close(whole, mean([effective(end, one.backbone) for end in found]))


def test_components_that_nobody_chose_stay_to_the_bit():
    delta, backbone = make_trees()
    method = lora_rules.lora_a2(ffm.Task(loss), optax.sgd(RATE), ranks=[1], **HOW)
    population = ffm.Population.from_clients(make_clients()[:1])
    one = ffm.Simulator(method, population, backbone=backbone, cohort_size=1, devices=1)
    state, _ = one.run(one.init(delta), 1)
    moved = sum(
        np.any(
            np.asarray(state.delta[name]["lora_b"]) != delta[name]["lora_b"], -1
        ).sum()
        for name in LAYERS
    )
    assert moved == 3


def test_a_has_an_optimizer_of_its_own():
    delta, backbone = make_trees()
    how = {"a_optimizer": optax.sgd(0.0), **HOW}
    method = lora_rules.lora_a2(ffm.Task(loss), optax.sgd(RATE), **how)
    population = ffm.Population.from_clients(make_clients())
    one = ffm.Simulator(method, population, backbone=backbone, cohort_size=8, devices=1)
    state, _ = one.run(one.init(delta), 1)
    after, _ = one.run(state, 1)
    assert np.any(
        np.asarray(state.delta["outer"]["lora_b"]) != delta["outer"]["lora_b"]
    )
    jax.tree.map(np.testing.assert_array_equal, after.delta, state.delta)
