"""Quadratics and a small network in numpy: what slow, plain versions of methods are made of."""

"""Clients with one quadratic each, of different curvatures: the optimum is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_fm as ffm


def of_points(points, sizes=None):
    """Clients whose loss is 1/2 (w - a)^2, each with `size` equal examples."""
    sizes = sizes or [1] * len(points)
    return [
        {"a": np.full(n, point, np.float32)}
        for point, n in zip(points, sizes, strict=True)
    ]


def loss_of_point(delta, backbone, batch, key):
    return 0.5 * (delta["w"] - batch["a"]) ** 2, {}


POINT = ffm.Task(loss_of_point)


def slope(delta, frozen, client):
    """The gradient of the small network's mean loss, written out; f64."""
    x, y = client["x"].astype(np.float64), client["y"].astype(np.float64)
    hidden = np.tanh(x @ (frozen["w"] + delta["w"]))
    back = 2 * (hidden @ delta["v"] - y) / len(y)
    return {
        "v": hidden.T @ back,
        "w": x.T @ (back[:, None] * delta["v"] * (1 - hidden**2)),
    }


def loss(delta, frozen, client):
    """The small network's mean loss."""
    hidden = np.tanh(client["x"] @ (frozen["w"] + delta["w"]))
    return np.mean((hidden @ delta["v"] - client["y"]) ** 2)


def moved(delta, gradient, rate, names=("v", "w")):
    """A step of gradient descent on some of the leaves."""
    return {
        name: leaf - rate * gradient[name] if name in names else leaf
        for name, leaf in delta.items()
    }


def mean(trees, weights):
    """The weighted mean of trees."""
    shares = np.array(weights) / np.sum(weights)
    return {
        name: sum(p * tree[name] for p, tree in zip(shares, trees, strict=True))
        for name in trees[0]
    }


def run(algorithm, clients, delta, rounds, backbone=(), **how):
    """(simulator, state, metrics) with everybody in every round."""
    how = {"cohort_size": len(clients), "devices": 1, "seed": 3} | how
    population = ffm.Population.from_clients(clients)
    simulator = ffm.Simulator(algorithm, population, backbone=backbone, **how)
    state, metrics = simulator.run(simulator.init(delta), rounds)
    return simulator, state, metrics
N, D = 6, 8
RNG = np.random.default_rng(3)
A = RNG.normal(size=(N, D)).astype(np.float32) * 3
H = RNG.uniform(0.5, 2.0, size=(N, D)).astype(np.float32)
OPTIMUM = (H * A).sum(0) / H.sum(0)
START = np.zeros(D, np.float32)
FULL = {"epochs": 1, "batch_size": 4}  # one example a client: the whole gradient


def loss(w, backbone, batch, key):
    return jnp.sum(batch["h"] * (w - batch["a"]) ** 2, axis=-1) / 2, {}


TASK = ffm.Task(loss)


def clients(copies=(1,) * N):
    """Client k has its quadratic `copies[k]` times over."""
    return [
        {"a": np.repeat(A[k : k + 1], n, 0), "h": np.repeat(H[k : k + 1], n, 0)}
        for k, n in enumerate(copies)
    ]


def gradients(w):
    """f64[N, D]: of every client at w, or at a point each."""
    return H * (np.asarray(w, np.float64) - A)


def simulator(algorithm, **given):
    how: dict[str, Any] = {"cohort_size": N, "seed": 5, "devices": 1} | given
    population = ffm.Population.from_clients(how.pop("clients", clients()))
    return ffm.Simulator(algorithm, population, **how)


def run(algorithm, rounds, **how):
    one = simulator(algorithm, **how)
    return one.run(one.init(START), rounds)


def distance(state, optimum=OPTIMUM):
    return float(np.linalg.norm(np.asarray(state.delta, np.float64) - optimum))


def tree_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)
