"""Two architectures for images of 8 x 8 pixels, and how good the models of all clients are."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import study, tasks
from fedjax_fm.algorithms.distillation import Architecture, Logits
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.bench.conv import conv_as_matmul, max_pool_2
from fedjax_fm.experiments.shared.digits import Arrays, Digits
from fedjax_fm.types import Task, Tree

NAMES = ("perceptron", "convolutions")
SHAPES = (
    {"w0": (64, 128), "b0": (128,), "w1": (128, 10), "b1": (10,)},
    {
        "k0": (3, 3, 1, 16),
        "b0": (16,),
        "k1": (3, 3, 16, 32),
        "b1": (32,),
        "w": (128, 10),
        "b2": (10,),
    },
)


def weights(seed: int) -> tuple[Tree, ...]:
    """Initial weights of both architectures.

    Args:
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        fan_in = math.prod(shape[:-1])
        scale = 0.0 if len(shape) == 1 else math.sqrt(2 / fan_in)
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    return tuple(
        {name: draw(shape) for name, shape in model.items()} for model in SHAPES
    )


def perceptron(w: Tree, backbone: Tree, batch: dict) -> jax.Array:
    """f32[n, 10]; 9,610 weights."""
    hidden = jax.nn.relu(batch["x"] @ w["w0"] + w["b0"][None])
    return hidden @ w["w1"] + w["b1"][None]


def convolutions(w: Tree, backbone: Tree, batch: dict) -> jax.Array:
    """f32[n, 10]; 6,090 weights."""
    x = batch["x"].reshape(-1, 8, 8, 1)
    for kernel, bias in ((w["k0"], w["b0"]), (w["k1"], w["b1"])):
        x = jax.nn.relu(conv_as_matmul(x, kernel) + bias[None, None, None])
    flat = max_pool_2(x).reshape(-1, 128)
    return flat @ w["w"] + w["b2"][None]


def _task(logits: Logits) -> Task:
    return tasks.from_logits(
        lambda delta, backbone, batch, key: logits(delta, backbone, batch)
    )


LOGITS = (perceptron, convolutions)
TASKS = tuple(_task(logits) for logits in LOGITS)


def architectures(rate: float) -> tuple[Architecture, ...]:
    """Both architectures.

    Args:
      rate: of the clients' SGD.
    """
    return tuple(
        Architecture(task, logits, optax.sgd(rate))
        for task, logits in zip(TASKS, LOGITS, strict=True)
    )


def _both(delta: Tree, backbone: Tree, batch: dict, key: jax.Array | None):
    """Mean loss and accuracy of a model of each architecture."""
    found = [task.loss(w, (), batch, key) for task, w in zip(TASKS, delta, strict=True)]
    right = [metrics["accuracy"] for _, metrics in found]
    return (found[0][0] + found[1][0]) / 2, {"accuracy": (right[0] + right[1]) / 2}


BOTH = Task(_both)  # of a tuple with a model of each architecture


def groups_of(found: Digits) -> np.ndarray:
    """The architecture of each client."""
    return np.arange(found.clients.n_clients) % len(NAMES)


def accuracies(
    models: list[Tree], groups: np.ndarray, test: Arrays
) -> dict[str, float]:
    """Means over the models of each architecture, and over architectures.

    Args:
      models: weights.
      groups: the architecture of each model.
      test: images of all classes.
    """
    found = []
    for w, group in zip(models, groups, strict=True):
        scores = ffm.evaluate(TASKS[group], w, (), test)
        found.append(means(scores)["accuracy"])
    all_of_them = np.array(found)
    each = {
        name: float(np.mean(all_of_them[groups == group]))
        for group, name in enumerate(NAMES)
    }
    mean = np.mean(list(each.values()))
    return {"accuracy": float(mean), **each}


def own_models(done: study.Simulated, groups: np.ndarray) -> list[Tree]:
    """The model of each client, of its architecture."""
    return [done.model(client)[0][group] for client, group in enumerate(groups)]
