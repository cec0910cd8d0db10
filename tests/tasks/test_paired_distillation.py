"""Students of one modality and teachers of another: closed forms, identities, a solved
least-squares problem, and pairs against exchanged pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm import tasks

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 5)).astype("f4")
TEXTS = RNG.normal(size=(6, 4)).astype("f4")
ANCHORS = RNG.normal(size=(3, 4)).astype("f4")
DELTA = RNG.normal(size=(5, 4)).astype("f4")
BATCH = {"image": IMAGES, "text": np.arange(6)}
BACKBONE = {"texts": TEXTS, "anchors": ANCHORS}


def student(delta, backbone, batch, key):
    return batch["image"] @ delta


def teacher(backbone, batch):
    return jnp.asarray(backbone["texts"])[batch["text"]]


def anchors(backbone):
    return backbone["anchors"]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def loss_of(task, delta=DELTA, backbone=BACKBONE, batch=BATCH):
    return task.loss(delta, backbone, batch, None)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_loss_is_its_formula(share, temperature):
    how = {"anchors": anchors, "share": share, "temperature": temperature}
    loss, metrics = loss_of(tasks.paired_distillation(student, teacher, **how))
    said = (IMAGES @ DELTA).astype("f8")
    cosine = (unit(said) * unit(TEXTS)).sum(-1)
    near, right = unit(said) @ unit(ANCHORS).T, unit(TEXTS) @ unit(ANCHORS).T
    p, q = softmax(right / temperature), softmax(near / temperature)
    soft = temperature**2 * (p * np.log(p / q)).sum(-1)
    expected = (1 - share) * (1 - cosine) + share * soft
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["cosine"], cosine, rtol=1e-4, atol=1e-6)
    agreed = near.argmax(-1) == right.argmax(-1)
    np.testing.assert_array_equal(metrics["agreement"], agreed)


def test_a_student_that_says_the_same_learns_nothing():
    how = {"anchors": anchors, "share": 0.5}
    for distance in (tasks.cosine_distance, tasks.mean_square, tasks.unit_square):
        task = tasks.paired_distillation(
            lambda delta, backbone, batch, key: delta, teacher, distance=distance, **how
        )

        def total(delta, task=task):
            return loss_of(task, delta)[0].sum()

        value, gradient = jax.value_and_grad(total)(jnp.asarray(TEXTS))
        assert abs(value) < 1e-5
        np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_the_teacher_and_the_anchors_are_not_differentiated():
    how = {"anchors": anchors, "share": 0.5}
    task = tasks.paired_distillation(student, teacher, **how)

    def total(backbone):
        return task.loss(DELTA, backbone, BATCH, None)[0].sum()

    gradient = jax.grad(total)(jax.tree.map(jnp.asarray, BACKBONE))
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)


def test_lengths_do_not_count_where_cosines_do():
    task = tasks.paired_distillation(student, teacher, anchors=anchors, share=0.4)
    longer = {"texts": 7 * TEXTS, "anchors": 3 * ANCHORS}
    one, other = loss_of(task)[0], loss_of(task, 5 * DELTA, longer)[0]
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_an_example_s_loss_is_its_own():
    task = tasks.paired_distillation(student, teacher, anchors=anchors, share=0.4)
    alone = {name: column[2:3] for name, column in BATCH.items()}
    np.testing.assert_allclose(
        loss_of(task, batch=alone)[0], loss_of(task)[0][2:3], rtol=1e-5
    )


def rounds_of(task, clients, rate, n):
    population = ffm.Population.from_clients(clients)
    algorithm = ffm.fedavg(task, optax.sgd(rate), local_steps=1, batch_size=40)
    simulator = ffm.Simulator(
        algorithm, population, backbone=BACKBONE, cohort_size=len(clients)
    )
    state, _ = simulator.run(simulator.init(jnp.zeros((5, 4))), n)
    return np.asarray(state.delta)


def test_clients_together_solve_least_squares():
    """A linear student under the mean square, one step of all rows a round."""
    random = np.random.default_rng(1)
    clients = []
    for _ in range(2):
        text = random.integers(0, 6, 40)
        noise = random.normal(size=(40, 5))
        image = np.concatenate([TEXTS[text], np.ones((40, 1))], axis=1) + 0.3 * noise
        clients.append({"image": image.astype("f4"), "text": text})
    task = tasks.paired_distillation(student, teacher, distance=tasks.mean_square)
    found = rounds_of(task, clients, rate=1.0, n=400)
    x = np.concatenate([client["image"] for client in clients])
    y = TEXTS[np.concatenate([client["text"] for client in clients])]
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_pairs_teach_and_exchanged_pairs_do_not():
    """A drawing of a class is told apart by the names alone, without a label."""
    random = np.random.default_rng(2)
    shapes = random.normal(size=(4, 5))  # as many as a linear map can tell apart
    text = random.integers(0, 4, 200)
    image = (shapes[text] + 0.2 * random.normal(size=(200, 5))).astype("f4")

    def names(backbone):
        return backbone["texts"][:4]

    task = tasks.paired_distillation(student, teacher, anchors=names, share=0.5)
    accuracy = {}
    for kind, told in (("right", text), ("exchanged", random.permutation(text))):
        rows = {"image": image, "text": told}
        parts = [
            {name: column[k::4] for name, column in rows.items()} for k in range(4)
        ]
        delta = rounds_of(task, parts, rate=1.0, n=150)
        batch = {"image": image, "text": text}
        accuracy[kind] = float(loss_of(task, delta, batch=batch)[1]["agreement"].mean())
    assert accuracy["right"] > 0.9
    assert accuracy["exchanged"] < 0.5


def test_what_is_refused():
    make = tasks.paired_distillation
    with pytest.raises(TypeError, match="expected student to be a function"):
        make(None, teacher)
    with pytest.raises(TypeError, match="expected teacher to be a function"):
        make(student, TEXTS)
    with pytest.raises(TypeError, match="expected anchors to be a function"):
        make(student, teacher, anchors=3)
    with pytest.raises(ValueError, match=r"expected anchors for share=0\.5"):
        make(student, teacher, share=0.5)
    for wrong in ({"share": 2.0}, {"temperature": 0}, {"share": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            make(student, teacher, anchors=anchors, **wrong)
    with pytest.raises(ValueError, match=r"shapes \[6, 3\] and \[6, 4\]"):
        loss_of(make(student, teacher), DELTA[:, :3])
    task = make(student, teacher, anchors=lambda b: b["anchors"][:, :2], share=0.5)
    with pytest.raises(ValueError, match=r"expected anchors \[K, 4\].*got \[3, 2\]"):
        loss_of(task)

    def flat(delta, backbone, batch, key):
        return batch["image"][:, 0]

    task = make(flat, lambda backbone, batch: batch["image"][:, 1])
    with pytest.raises(ValueError, match=r"expected features \[B, d\], got \[6\]"):
        loss_of(task)
