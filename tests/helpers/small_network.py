"""A small network in numpy: what slow, plain versions of methods are made of."""

import numpy as np

import fedjax_fm as ffm


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
