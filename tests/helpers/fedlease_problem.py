"""A layer of LoRA experts behind a router, with a head, and its training by a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.peft.lora_experts import expert_shares

D, RANK, OUT, RATE, STEPS = 4, 2, 3, 0.1, 3
LABELS = (0, 1, 0, 1, 1, 0)
SIZES = (5, 2, 3, 6, 1, 4)
HOW = {"local_steps": STEPS, "batch_size": 8}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CLIENTS = [{"x": draw(k, n, D), "y": draw(50 + k, n)} for k, n in enumerate(SIZES)]


def make_delta(m=2):
    a, b = draw(1, m, D, RANK), draw(2, m, RANK, OUT)
    layer = {"expert_a": a, "expert_b": b, "router": draw(3, D, 2 * m - 1)}
    return {"layer": layer, "head": draw(4, OUT)}


def loss(delta, backbone, batch, key):
    """Squared errors of one layer of experts, the client's own first."""
    layer, x = delta["layer"], batch["x"]
    shares = expert_shares(x @ layer["router"])
    updates = jnp.einsum("bi,mir,mro->mbo", x, layer["expert_a"], layer["expert_b"])
    hidden = jnp.einsum("bm,mbo->bo", shares, updates)
    return (jnp.tanh(hidden) @ delta["head"] - batch["y"]) ** 2, {}


def swapped(layer, cluster):
    """The client's view, with two experts: its own first."""
    order = np.array([cluster, 1 - cluster])
    return {
        **layer,
        "expert_a": layer["expert_a"][order],
        "expert_b": layer["expert_b"][order],
    }


@jax.jit
def gradient(delta, client):
    return jax.grad(lambda delta: jnp.mean(loss(delta, (), client, None)[0]))(delta)


def train(delta, router, client, cluster):
    """Gradient descent on the own expert, the router and the head; plain loop."""
    delta = {
        "layer": {**swapped(delta["layer"], cluster), "router": router},
        "head": delta["head"],
    }
    delta = jax.tree.map(np.array, delta)
    for _ in range(STEPS):
        step = jax.tree.map(np.asarray, gradient(delta, client))
        delta["head"] -= RATE * step["head"]
        delta["layer"]["router"] -= RATE * step["layer"]["router"]
        for name in ("expert_a", "expert_b"):
            delta["layer"][name][0] -= RATE * step["layer"][name][0]
    return delta
