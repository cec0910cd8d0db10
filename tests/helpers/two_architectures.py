"""A classification problem for clients of two architectures: a perceptron with a frozen
part, and a linear model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm.algorithms.distillation import Architecture

FEATURES, HIDDEN, CLASSES, PUBLIC = 3, 4, 3, 11
SIZES = (6, 1, 4, 2, 6, 3, 5)
GROUPS = np.array([0, 1, 0, 1, 1, 0, 1])


def perceptron(delta, backbone, batch):
    return jnp.tanh(batch["x"] @ (backbone["w"] + delta["w"])) @ delta["v"]


def linear(delta, backbone, batch):
    return batch["x"] @ delta["u"] + delta["b"][None]


LOGITS = (perceptron, linear)


def task(logits):
    def loss(delta, backbone, batch, key):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(delta, backbone, batch), batch["y"]
        ), {}

    return ffm.Task(loss)


def architectures(rate=0.3):
    return tuple(
        Architecture(task(logits), logits, optax.sgd(rate)) for logits in LOGITS
    )


def make_clients(seed=0, sizes=SIZES):
    rng = np.random.default_rng(seed)

    def draw(n):
        return rng.normal(size=(n, FEATURES)).astype(np.float32)

    return [
        {"x": draw(n), "y": rng.integers(CLASSES, size=n).astype(np.int32)}
        for n in sizes
    ]


def make_public(seed=7, n=PUBLIC):
    return {
        "x": np.random.default_rng(seed).normal(size=(n, FEATURES)).astype(np.float32)
    }


def make_trees(seed=1):
    """(deltas, backbones), one of each for both architectures."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    deltas = (
        {"w": draw(FEATURES, HIDDEN), "v": draw(HIDDEN, CLASSES)},
        {"u": draw(FEATURES, CLASSES), "b": draw(CLASSES)},
    )
    return deltas, ({"w": draw(FEATURES, HIDDEN)}, ())


def descent(group, delta, backbone, examples, *, steps, rate, target=None):
    """Plain full-batch gradient descent: on the labels, or on KL(softmax(target) ||
    softmax(logits)).
    """
    x = {"x": jnp.asarray(examples["x"])}

    def loss(delta):
        log = jax.nn.log_softmax(LOGITS[group](delta, backbone, x))
        if target is None:
            return -jnp.mean(log[jnp.arange(len(examples["y"])), examples["y"]])
        return -jnp.mean(
            jnp.sum(jax.nn.softmax(target) * log, -1)
        )  # the KL, up to a constant

    for _ in range(steps):
        delta = jax.tree.map(lambda w, g: w - rate * g, delta, jax.grad(loss)(delta))
    return delta
