"""A federated run on a stand-in ends between chance and the Bayes rate, which is known."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm.datasets.named.stand_ins.labels import bayes_rate
from fedjax_fm.datasets.named.stand_ins.words import vocabulary


def counts(texts):
    """f32[rows, words]: how often each word of the vocabulary is in a text."""
    place = {word: k for k, word in enumerate(vocabulary())}
    found = np.zeros((len(texts), len(place)), np.float32)
    for row, text in zip(found, texts, strict=True):
        for word in text.split():
            row[place[word]] += 1
    return found


def logits(delta, backbone, batch, key):
    return batch["x"] @ delta["w"]


@pytest.fixture(scope="module")
def run():
    data = ffm.datasets.load("glue/fedsvd-dp/sst2", source="stand-in", limit=4000)
    table = {
        "x": counts(data.train["text"]),
        "label": data.train["label"],
        "client": data.client,
    }
    population = ffm.Population.from_table(
        table, by=data.partitioner, columns=["x", "label"]
    )
    task = ffm.tasks.from_logits(logits)
    algorithm = ffm.fedavg(task, optax.sgd(0.3), local_steps=10, batch_size=128)
    simulator = ffm.Simulator(algorithm, population, cohort_size=3, seed=0, devices=1)
    state = simulator.init({"w": jnp.zeros((len(vocabulary()), 2))})
    state, metrics = simulator.run(state, 60)
    guesses = counts(data.test["text"]) @ np.asarray(state.delta["w"])
    right = guesses.argmax(1) == data.test["label"]
    return right, np.asarray(metrics["loss"])


def test_the_loss_falls(run):
    _, loss = run
    assert loss[-5:].mean() < 0.75 * loss[:5].mean()


def test_the_accuracy_is_above_chance_and_not_above_the_bayes_rate(run):
    right, _ = run
    rate = bayes_rate(2)
    error = (rate * (1 - rate) / len(right)) ** 0.5
    assert 0.65 < right.mean() < rate + 3 * error
