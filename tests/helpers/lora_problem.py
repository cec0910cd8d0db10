"""A small network with low-rank adapters on stacked and on single layers, and its
training by hand in numpy.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules

SCALING = 1.5
SIZES = (6, 1, 4, 2, 6, 3, 5, 2)
MIXED = (3, 1, 2, 3, 1, 2, 3, 1)
STEPS, RATE = 3, 0.1
HOW = {"local_steps": STEPS, "batch_size": 8}
LAYERS = ("inner", "outer")


def make_trees(d=5, rank=3, seed=1, squares=False):
    """(delta, backbone): an `inner` stack of two layers d x d, an `outer` one d x (d +
    2), a head that is trained.
    """
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (rng.normal(size=shape) / np.sqrt(d)).astype(np.float32)

    delta, backbone = {"head": draw(d + 2)}, {}
    for name, stacked, n_out in (("inner", (2,), d), ("outer", (), d + 2)):
        a, b = draw(*stacked, d, rank), draw(*stacked, rank, n_out)
        backbone[name] = {"base": {"kernel": draw(*stacked, d, n_out)}}
        if squares:
            backbone[name] |= {"lora_a": a, "lora_b": b}
            delta[name] = {"lora_r": draw(*stacked, rank, rank)}
        else:
            delta[name] = {"lora_a": a, "lora_b": b}
    return delta, backbone


def make_clients(d=5, sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return [{"x": draw(n, d), "y": draw(n)} for n in sizes]


# With jax


def update(delta, backbone, name):
    """s A B, or s A R B."""
    factors = {**backbone[name], **delta[name]}
    middle = (
        factors["lora_r"] @ factors["lora_b"]
        if "lora_r" in factors
        else factors["lora_b"]
    )
    return SCALING * (factors["lora_a"] @ middle)


def kernels(delta, backbone):
    """[three matrices], what the layers' inputs are multiplied by."""
    inner, outer = (
        backbone[name]["base"]["kernel"] + update(delta, backbone, name)
        for name in LAYERS
    )
    return [inner[0], inner[1], outer]


def loss(delta, backbone, batch, key):
    """(squared errors [B], {})."""
    hidden = batch["x"]
    for kernel in kernels(delta, backbone):
        hidden = jnp.tanh(hidden @ kernel)
    return (hidden @ delta["head"] - batch["y"]) ** 2, {}


@functools.cache
def simulated(name, ranks=None, devices=1, **how):
    """(simulator, first state, list that grows with every trace of the loss), of all
    eight clients every round.
    """
    rule, traces = getattr(lora_rules, name), []

    def counted(*operands):
        traces.append(1)
        return loss(*operands)

    if name in ("fedex_lora", "flora", "frlora"):
        how["scaling"] = SCALING
    if name != "frlora":
        how["ranks"] = ranks
    delta, backbone = make_trees(squares=name == "fed_sb")
    if name == "frlora":
        delta, backbone = lora_rules.principal_start(delta, backbone, scaling=SCALING)
    algorithm = rule(ffm.Task(counted), optax.sgd(RATE), **HOW, **how)
    population = ffm.Population.from_clients(make_clients())
    one = ffm.Simulator(
        algorithm, population, backbone=backbone, cohort_size=8, devices=devices
    )
    return one, one.init(delta), traces


# By hand


def in_numpy(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def cut(delta, rank):
    """The first `rank` rows and columns of every adapter; the rest zero."""
    delta = in_numpy(delta)
    for name in LAYERS if rank is not None else ():
        layer = delta[name] = {kind: x.copy() for kind, x in delta[name].items()}
        for kind, x in layer.items():
            if kind in ("lora_a", "lora_r"):
                x[..., rank:] = 0
            if kind in ("lora_b", "lora_r"):
                x[..., rank:, :] = 0
    return delta


def kernel_gradients(head, matrices, x, y):
    """Of the mean squared error by the three kernels and the head."""
    hidden = [x]
    for matrix in matrices:
        hidden.append(np.tanh(hidden[-1] @ matrix))
    error = 2 * (hidden[-1] @ head - y) / len(y)
    back, found = np.outer(error, head), []
    for matrix, before, after in zip(
        matrices[::-1], hidden[-2::-1], hidden[:0:-1], strict=True
    ):
        back = back * (1 - after**2)
        found.append(before.T @ back)
        back = back @ matrix.T
    inner = np.stack(found[:0:-1])
    return {"inner": inner, "outer": found[0], "head": hidden[-1].T @ error}


def gradients(delta, backbone, x, y):
    """Of the mean squared error by the factors and the head, by back-propagation."""
    of_kernels = kernel_gradients(delta["head"], kernels(delta, backbone), x, y)
    found = {"head": of_kernels["head"]}
    for name in LAYERS:
        g = of_kernels[name]
        factors = {**backbone[name], **delta[name]}
        a, b = (factors[kind].swapaxes(-1, -2) for kind in ("lora_a", "lora_b"))
        chain = (
            {"lora_r": lambda g, a, b: a @ g @ b}
            if "lora_r" in factors
            else {"lora_a": lambda g, a, b: g @ b, "lora_b": lambda g, a, b: a @ g}
        )
        found[name] = {kind: SCALING * f(g, a, b) for kind, f in chain.items()}
    return found


def train_entries(weights, client, mask):
    """Gradient descent on the kernels' entries in the mask, and the head."""
    weights, client = in_numpy(weights), in_numpy(client)
    for _ in range(STEPS):
        matrices = [*weights["inner"], weights["outer"]]
        step = kernel_gradients(weights["head"], matrices, client["x"], client["y"])
        weights = {
            name: x - RATE * step[name] * mask.get(name, True)
            for name, x in weights.items()
        }
    return weights


def base(delta, backbone):
    whole = {name: backbone[name]["base"]["kernel"] for name in LAYERS}
    return in_numpy({**whole, "head": delta["head"]})


def train(delta, backbone, client, rank=None, fixed=(), penalty=None):
    """Full-batch gradient descent on what lies within the rank; factors named in
    `fixed` stay; `penalty(delta)` is a gradient to be added."""
    delta, backbone, client = cut(delta, rank), in_numpy(backbone), in_numpy(client)
    for _ in range(STEPS):
        step = cut(gradients(delta, backbone, client["x"], client["y"]), rank)
        if penalty is not None:
            step = jax.tree.map(np.add, step, penalty(delta))
        delta = copy.deepcopy(delta)
        delta["head"] -= RATE * step["head"]
        for name in LAYERS:
            for kind in set(delta[name]) - set(fixed):
                delta[name][kind] -= RATE * step[name][kind]
    return delta


def tails(delta, name, kept):
    """(a, b, norm of a, norm of b) of the rows past `kept`, one a stacked layer."""
    a, b = delta[name]["lora_a"][..., kept:], delta[name]["lora_b"][..., kept:, :]
    return a, b, *(np.sqrt(np.sum(x**2, axis=(-2, -1), keepdims=True)) for x in (a, b))


def tail_size(delta, kept):
    """sum over layers of ||a|| ||b|| of the tails."""
    return sum(
        np.sum(of_a * of_b)
        for _, _, of_a, of_b in (tails(delta, name, kept) for name in LAYERS)
    )


def tail_gradient(delta, kept, factor):
    """The gradient of factor * tail_size; tails must not be zero."""
    found = jax.tree.map(np.zeros_like, delta)
    for name in LAYERS:
        a, b, of_a, of_b = tails(delta, name, kept)
        found[name]["lora_a"][..., kept:] = factor * a / of_a * of_b
        found[name]["lora_b"][..., kept:, :] = factor * b / of_b * of_a
    return found


def effective(delta, backbone):
    """{layer: kernel and update, "head"}, in f64."""
    delta, backbone = in_numpy(delta), in_numpy(backbone)
    whole = {
        name: backbone[name]["base"]["kernel"] + update(delta, backbone, name)
        for name in LAYERS
    }
    return {**whole, "head": delta["head"]}


def mean(trees, sizes=SIZES):
    """sum_k n_k x_k / sum_k n_k."""
    shares = np.asarray(sizes, np.float64) / sum(sizes)
    return jax.tree.map(lambda *xs: np.tensordot(shares, np.stack(xs), axes=1), *trees)


def close(a, b, rtol=2e-5, atol=2e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
    )
