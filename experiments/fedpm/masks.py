"""FedPM, and FedAvg of the same multi-layer perceptron without biases."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import study, tasks
from fedjax_fm.algorithms.fedpm import (
    fedpm,
    masked,
    sample_masks,
    signed_constants,
    threshold_masks,
)
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.fedpm.bits import bits_of_next_round, remembering
from fedjax_fm.experiments.shared.digits import Arrays
from fedjax_fm.types import Tree


def shapes(width: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the weights.

    Args:
      width: of both hidden layers.
    """
    sizes = {"w0": (64, width), "w1": (width, width), "w2": (width, 10)}
    return {
        name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()
    }


def logits(
    weights: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any
) -> jax.Array:
    """The perceptron's logits, f32[n, 10]."""
    hidden = jax.nn.relu(batch["x"] @ weights["w0"])
    hidden = jax.nn.relu(hidden @ weights["w1"])
    return hidden @ weights["w2"]


def of_several(
    networks: list[Tree], backbone: Tree, batch: dict[str, jax.Array], key: Any
) -> jax.Array:
    """The logarithm of the mean probabilities of several networks, f32[n, 10]."""
    each = [logits(weights, backbone, batch, key) for weights in networks]
    logs = jnp.stack([jax.nn.log_softmax(one) for one in each])
    return jax.nn.logsumexp(logs, axis=0) - math.log(len(networks))


TASK, SEVERAL = tasks.from_logits(logits), tasks.from_logits(of_several)


def accuracy(networks: list[Tree], test: Arrays) -> float:
    """Accuracy of the networks' mean probabilities.

    Args:
      networks: weights of each.
      test: images with labels.
    """
    scores = ffm.evaluate(SEVERAL, networks, (), test)
    return means(scores)["accuracy"]


def masks(
    run: study.Run, start: float = 0.0, rate: float | None = None, **how: Any
) -> dict[str, float]:
    """FedPM.

    Args:
      run: of the arm.
      start: masks start at sigmoid(N(start, 1)).
      rate: of the clients; default: the tuned one.
      **how: more settings of `fedpm`.
    """
    config, test, key = run.config, run.data.test, jax.random.key(run.seed)
    weights = signed_constants(shapes(config.width), key)
    probabilities = {}
    for i, (name, leaf) in enumerate(weights.items()):
        own = jax.random.fold_in(key, 100 + i)
        scores = start + jax.random.normal(own, leaf.shape)
        probabilities[name] = jax.nn.sigmoid(scores)
    adam = optax.adam(run["learning_rate"] if rate is None else rate)
    how = {"softening": 1e-3, "reset_every": 1, **study.walk(config), **how}
    wire = {"backbone": weights, "uplink": remembering()}
    algorithm = fedpm(TASK, adam, **how)
    done = simulate(run, algorithm, probabilities, **wire)
    theta = done.state.delta
    drawn = [sample_masks(theta, jax.random.key(i)) for i in range(3)]
    networks = [masked(weights, mask) for mask in drawn]
    certain = masked(weights, threshold_masks(theta))
    each = [accuracy([network], test) for network in networks]
    return {
        "accuracy": accuracy(networks, test),
        "threshold": accuracy([certain], test),
        "one draw": float(np.mean(each)),
        "ones": float(done.metrics["density"][-1]),
        "all rounds": float(done.metrics["bits_per_parameter"].mean()),
        **({} if run.is_tuning else bits_of_next_round(done)),
    }


def trained(run: study.Run) -> dict[str, float]:
    """The same network, trained in full precision from weights of He's scale."""
    sizes, key = shapes(run.config.width), jax.random.key(run.seed)
    start = signed_constants(sizes, key, gain=math.sqrt(2))
    sgd = optax.sgd(run["learning_rate"])
    done = simulate(run, ffm.fedavg(TASK, sgd, **study.walk(run.config)), start)
    return {"accuracy": accuracy([done.state.delta], run.data.test)}


def simulate(
    run: study.Run, algorithm: ffm.Algorithm, delta: Tree, **how: Any
) -> study.Simulated:
    """A run with half of the clients in each round."""
    clients, test = run.data.clients, run.data.test
    how = {"cohort_size": clients.n_clients // 2, "task": TASK, "test": test, **how}
    return run.simulate(algorithm, clients, delta, **how)
