"""Objectives of distillation by closed forms and loops, layer maps by linear programs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.optimize import linprog

import fedjax_fm as ffm
from fedjax_fm import models, tasks

RNG = np.random.default_rng(0)
Z_S, Z_T = RNG.normal(size=(2, 5, 4)).astype("f4")
LABELS = RNG.integers(0, 4, 5)


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


# Predictions


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_targets_and_their_gradient(temperature):
    p, q = softmax(Z_T / temperature), softmax(Z_S / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(-1)
    found = tasks.soft_targets(Z_S, Z_T, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    def total(student, teacher):
        return tasks.soft_targets(student, teacher, temperature).sum()

    of_student, of_teacher = jax.grad(total, (0, 1))(Z_S, Z_T)
    np.testing.assert_allclose(of_student, temperature * (q - p), rtol=1e-4, atol=1e-6)
    assert not of_teacher.any()
    assert not np.asarray(jax.grad(total)(Z_T, Z_T)).round(6).any()
    assert tasks.soft_targets(Z_T, Z_T, temperature).tolist() == [0] * 5


def test_the_limit_of_a_high_temperature():
    """(1 / 2C) ||z_s - z_t||^2 of logits less their means."""
    apart = (Z_S - Z_S.mean(-1, keepdims=True)) - (Z_T - Z_T.mean(-1, keepdims=True))
    limit = (apart**2).sum(-1) / (2 * 4)
    found = tasks.soft_targets(Z_S, Z_T, 100.0)
    np.testing.assert_allclose(found, limit, rtol=0.03)


def test_hard_targets():
    p = softmax(Z_S)
    expected = -np.log(p[np.arange(5), Z_T.argmax(-1)])
    np.testing.assert_allclose(tasks.hard_targets(Z_S, Z_T), expected, rtol=1e-5)


# Features

H_S, H_T = RNG.normal(size=(2, 3, 5, 8)).astype("f4")
REAL = np.arange(5) < np.array([[5], [3], [1]])


def rows():
    """(student tokens, teacher tokens) of each text, real ones only."""
    return [(H_S[i][REAL[i]].astype("f8"), H_T[i][REAL[i]].astype("f8")) for i in range(3)]  # fmt: skip


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_distances_of_features():
    tables = {
        tasks.mean_square: [((s - t) ** 2).mean() for s, t in rows()],
        tasks.unit_square: [((unit(s) - unit(t)) ** 2).sum(-1).mean() for s, t in rows()],
        tasks.cosine_distance: [1 - (unit(s) * unit(t)).sum(-1).mean() for s, t in rows()],
    }  # fmt: skip
    for distance, expected in tables.items():
        np.testing.assert_allclose(distance(H_S, H_T, REAL), expected, rtol=1e-4)
        whole = distance(H_S, H_T)
        every = distance(H_S, H_T, np.ones((3, 5), bool))
        np.testing.assert_allclose(whole, every, rtol=1e-6)
        np.testing.assert_allclose(distance(H_T, H_T), 0, atol=1e-6)
        gradient = jax.grad(lambda s, d=distance: d(s, H_T, REAL).sum())(H_S)
        assert not np.asarray(gradient)[~REAL].any()
    zeros = jax.grad(lambda s: tasks.cosine_distance(s, H_T).sum())(np.zeros_like(H_S))
    assert np.isfinite(zeros).all()
    np.testing.assert_allclose(
        tasks.unit_square(H_S, H_T), 2 * tasks.cosine_distance(H_S, H_T), rtol=1e-4
    )


def information(s, t, alpha, temperature):
    """The bound, token by token."""
    n = len(s)
    f = unit(s) @ unit(t).T / temperature
    log_joint, ratio = 0.0, 0.0
    for j in range(n):
        below = alpha * np.mean(np.exp(f[:, j])) + (1 - alpha) * math.e
        log_joint += math.log(math.exp(f[j, j]) / below) / n
        ratio += sum(math.exp(f[i, j]) / below for i in range(n)) / n**2
    return 1 + log_joint - ratio


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_mutual_information_against_a_loop(alpha):
    distance = tasks.mutual_information(alpha, temperature=0.5)
    expected = [-information(s, t, alpha, 0.5) for s, t in rows()]
    found = distance(H_S, H_T, REAL)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda s: distance(s, H_T, REAL).sum())(H_S)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~REAL].any()


def test_infonce_is_at_most_the_logarithm_of_the_tokens():
    tight = tasks.mutual_information(1.0, temperature=0.01)
    assert -float(tight(H_T, H_T)[0]) == pytest.approx(math.log(5), abs=1e-3)
    assert (-tight(H_S, H_T) <= math.log(5)).all()


# Layer maps


def test_maps_that_are_fixed():
    """PKD's of six student layers and twelve, and of three and five."""
    costs = jnp.zeros((6, 12))
    assert np.argwhere(tasks.skip(costs))[:, 1].tolist() == [1, 3, 5, 7, 9, 11]
    assert np.argwhere(tasks.last(costs))[:, 1].tolist() == [6, 7, 8, 9, 10, 11]
    assert np.argwhere(tasks.skip(jnp.zeros((3, 5))))[:, 1].tolist() == [1, 3, 4]
    for layer_map in (tasks.skip, tasks.last):
        assert float(layer_map(costs).sum()) == pytest.approx(1)
        with pytest.raises(ValueError, match="of 3 layers has more than its teacher"):
            layer_map(jnp.zeros((3, 2)))


@pytest.mark.parametrize(("m", "n"), [(3, 3), (2, 4), (4, 6), (3, 2)])
def test_the_earth_mover_against_a_linear_program(m, n):
    costs = RNG.random((2, m, n)).astype("f4")
    flows = jax.jit(jax.vmap(tasks.earth_mover))(costs)
    for cost, flow in zip(costs, np.asarray(flows), strict=True):
        np.testing.assert_allclose(flow.sum(1), 1 / m, rtol=1e-5)
        np.testing.assert_allclose(flow.sum(0), 1 / n, rtol=1e-5)
        sums = [np.kron(np.eye(m), np.ones(n)), np.kron(np.ones(m), np.eye(n))]
        right = np.r_[np.full(m, 1 / m), np.full(n, 1 / n)]
        best = linprog(cost.ravel(), A_eq=np.concatenate(sums), b_eq=right)
        assert (cost * flow).sum() == pytest.approx(best.fun, rel=1e-5)
    with pytest.raises(ValueError, match="13 and 11 layers have 143"):
        tasks.earth_mover(jnp.zeros((13, 11)))


# The task


def outputs(weights, x):
    """Two hidden layers of width three, and logits."""
    first = jnp.tanh(x @ weights["a"])
    second = jnp.tanh(first @ weights["b"])
    return tasks.Outputs(jnp.mean(second, 1) @ weights["c"], [first, second])


def weights(seed):
    rng = np.random.default_rng(seed)
    shapes = {"a": (2, 3), "b": (3, 3), "c": (3, 4)}
    return {name: rng.normal(size=s).astype("f4") for name, s in shapes.items()}


BATCH = {"x": RNG.normal(size=(5, 4, 2)).astype("f4"), "label": LABELS}


def student(delta, backbone, batch, key):
    return outputs(delta, batch["x"])


def teacher(backbone, batch):
    return outputs(backbone, batch["x"])


def loss_of(**how):
    task = tasks.distilled(student, teacher, **how)
    return task.loss(weights(0), weights(1), BATCH, None)


def test_the_loss_is_the_sum_of_its_parts():
    own, other = (outputs(weights(i), BATCH["x"]) for i in (0, 1))
    hard = -np.log(softmax(np.asarray(own.logits))[np.arange(5), LABELS])
    soft = np.asarray(tasks.soft_targets(own.logits, other.logits, 2.0))
    pairs = zip(own.hidden, other.hidden, strict=True)
    apart = np.mean([np.mean((s - t) ** 2, (1, 2)) for s, t in pairs], 0)
    found, metrics = loss_of(share=0.7, temperature=2.0, features=0.5)
    expected = 0.3 * hard + 0.7 * soft + 0.5 * apart
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    plain, _ = loss_of(share=0.0)
    np.testing.assert_allclose(plain, hard, rtol=1e-5)
    likeliest = np.asarray(own.logits).argmax(-1)
    assert metrics["accuracy"].tolist() == (likeliest == LABELS).tolist()
    agreed = likeliest == np.asarray(other.logits).argmax(-1)
    assert metrics["agreement"].tolist() == agreed.tolist()


def test_the_earth_mover_as_the_map_of_a_task():
    found, _ = loss_of(share=1.0, features=1.0, layer_map=tasks.earth_mover)
    soft, _ = loss_of(share=1.0)
    own, other = (outputs(weights(i), BATCH["x"]) for i in (0, 1))
    for i in range(5):
        costs = np.array([[np.mean((s[i] - t[i]) ** 2) for t in other.hidden] for s in own.hidden])  # fmt: skip
        ways = [sum(costs[k, j] for k, j in enumerate(p)) / 2 for p in itertools.permutations((0, 1))]  # fmt: skip
        assert float(found[i] - soft[i]) == pytest.approx(min(ways), rel=1e-3)


def test_no_gradient_reaches_the_teacher():
    task = tasks.distilled(student, teacher, share=0.5, features=1.0)

    def total(delta, backbone):
        return jnp.sum(task.loss(delta, backbone, BATCH, None)[0])

    of_student, of_teacher = jax.grad(total, (0, 1))(weights(0), weights(1))
    assert all(np.any(x) for x in jax.tree.leaves(of_student))
    assert not any(np.any(x) for x in jax.tree.leaves(of_teacher))


def test_a_federation_learns_from_a_teacher_of_few_bits():
    """The teacher is a linear layer of 4 bits beside the student, in the backbone."""

    class Big(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(64, 4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.dense(x)

    graphdef, state = nnx.split(models.quantize(Big(), "nf4", targets="dense"))

    def of_student(delta, backbone, batch, key):
        return tasks.Outputs(batch["x"][:, :32] @ delta)

    def of_teacher(backbone, batch):
        return tasks.Outputs(nnx.merge(graphdef, backbone)(batch["x"]))

    task = tasks.distilled(of_student, of_teacher, share=0.9)
    rng = np.random.default_rng(0)
    clients = [
        {"x": rng.normal(size=(6, 64)).astype("f4"), "label": rng.integers(0, 4, 6)}
        for _ in range(2)
    ]
    method = ffm.fedavg(task, optax.sgd(0.3), local_steps=3, batch_size=6)
    population = ffm.Population.from_clients(clients)
    how = {"backbone": state, "cohort_size": 2, "devices": 1}
    simulator = ffm.Simulator(method, population, **how)
    _, metrics = simulator.run(simulator.init(jnp.zeros((32, 4))), 8)
    assert metrics["loss"][-1] < 0.7 * metrics["loss"][0]
    assert metrics["agreement"][-1] > 0.7
    assert metrics["uplink_bytes"][0] == 2 * 32 * 4 * 4  # of the student alone


def test_a_student_with_a_distillation_token():
    def heads(delta, backbone, batch, key):
        return Z_S, Z_S * delta

    task = tasks.with_distillation_token(heads, lambda backbone, batch: Z_T)
    found, metrics = task.loss(2.0, (), {"label": LABELS}, None)
    first, second = softmax(Z_S), softmax(2 * Z_S)
    rows, says = np.arange(5), Z_T.argmax(-1)
    expected = -(np.log(first[rows, LABELS]) + np.log(second[rows, says])) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    likeliest = (first + second).argmax(-1)
    assert metrics["agreement"].tolist() == (likeliest == says).tolist()
    assert metrics["accuracy"].tolist() == (likeliest == LABELS).tolist()


# Refusals


def test_outputs_that_cannot_be_compared_are_refused_with_both_shapes():
    def wide(backbone, batch):
        return tasks.Outputs(jnp.zeros((5, 7)), [jnp.zeros((5, 4, 6))] * 2)

    for how in ({"share": 0.5}, {"share": 0.5, "features": 1.0}):
        task = tasks.distilled(student, wide, **how)
        with pytest.raises(ValueError, match=r"the shapes \[5, 4\] and \[5, 7\]"):
            task.loss(weights(0), (), BATCH, None)
    with pytest.raises(ValueError, match=r"\[3, 5, 8\] and \[3, 5, 4\]"):
        tasks.mean_square(H_S, H_T[..., :4])
    bare = tasks.distilled(student, lambda b, batch: tasks.Outputs(Z_T), features=1.0)
    with pytest.raises(ValueError, match="the student gives 2 hidden layers and the teacher 0"):  # fmt: skip
        bare.loss(weights(0), (), BATCH, None)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"share": 1.5}, "share=1.5"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"features": -1.0}, "features=-1.0"),
        ({"share": math.nan}, "share=nan"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        tasks.distilled(student, teacher, **how)


def test_kinds_that_make_no_sense_are_refused():
    with pytest.raises(TypeError, match="student=3"):
        tasks.distilled(3, teacher)
    with pytest.raises(TypeError, match="layer_map to be a layer map"):
        tasks.distilled(student, teacher, layer_map="skip")
    with pytest.raises(TypeError, match="teacher=None"):
        tasks.with_distillation_token(student, None)
    with pytest.raises(ValueError, match="alpha=2"):
        tasks.mutual_information(2.0)
    with pytest.raises(ValueError, match="temperature=0"):
        tasks.mutual_information(temperature=0.0)
