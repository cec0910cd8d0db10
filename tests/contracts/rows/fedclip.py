"""FedCLIP on linear towers behind one trained layer each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract import Problem, Row

from fedjax_fm.algorithms import fedclip
from fedjax_fm.tasks import PairFeatures

RATE, STEPS = 0.2, 3


def _features(delta, backbone, batch, key):
    image = jnp.tanh(batch["image"] @ backbone["image"]) @ delta["image"]
    text = jnp.tanh(batch["text"] @ backbone["text"]) @ delta["text"]
    return PairFeatures(image, text, jnp.float32(3))


def _make() -> Problem:
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    method = fedclip(_features, optax.sgd(RATE), local_steps=STEPS, batch_size=8)
    return Problem(
        algorithm=method,
        delta={"image": draw(4, 3), "text": draw(4, 3)},
        backbone={"image": draw(5, 4), "text": draw(2, 4)},
        clients=[{"image": draw(n, 5), "text": draw(n, 2)} for n in (6, 1, 4, 2, 6, 3)],
        cohort_size=4,
    )


def _centralised(problem, client, key):
    """Gradient descent on CLIP's loss as its paper writes it."""

    def loss(delta):
        image, text, scale = _features(delta, problem.backbone, client, None)
        image /= jnp.sqrt(jnp.sum(image**2, axis=1, keepdims=True))
        text /= jnp.sqrt(jnp.sum(text**2, axis=1, keepdims=True))
        logits = scale * image @ text.T
        rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
        columns = jnp.diagonal(jax.nn.log_softmax(logits, axis=0))
        return -(rows.mean() + columns.mean()) / 2

    delta = problem.delta
    for _ in range(STEPS):
        slope = jax.grad(loss)(delta)
        delta = jax.tree.map(lambda w, g: w - RATE * g, delta, slope)
    return delta


ROWS = {"fedclip": Row(_make, _centralised)}
