"""One of each kind, strictly: no leaked tracer, no promoted rank, no warning."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import channels, kernels, peft
from fedjax_fm.population import samplers
from fedjax_fm.types import Sampler


@pytest.fixture(autouse=True)
def strict():
    with (
        jax.checking_leaks(),
        jax.numpy_rank_promotion("raise"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        yield


def mean_loss(delta, backbone, batch, key):
    return (batch["x"] @ delta["w"] - batch["y"]) ** 2, {}


def regression(n_clients=6):
    rng = np.random.default_rng(0)
    return [
        {"x": rng.normal(size=(n, 3)), "y": rng.normal(size=n)}
        for n in range(1, n_clients + 1)
    ]


def test_a_method_in_the_simulator():
    algorithm = ffm.fedavg(
        ffm.Task(mean_loss), optax.adam(0.1), optax.sgd(1.0), epochs=1, batch_size=2
    )
    uplink = channels.error_feedback(
        channels.chain(channels.top_k(0.5), channels.quantize(4))
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(regression()),
        cohort_size=4,
        uplink=uplink,
        devices=2,
        block_size=2,
    )
    _, metrics = simulator.run(simulator.init({"w": jnp.zeros(3)}), 3)
    assert np.isfinite(metrics["loss"]).all()


@pytest.mark.parametrize("name", ["top_k", "quantize", "sign", "identity"])
def test_channels(name):
    channel = {
        "top_k": channels.top_k(0.5),
        "quantize": channels.quantize(4),
        "sign": channels.sign(),
        "identity": channels.identity(),
    }[name]
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
    state = channel.init(ffm.trees.shapes(tree))

    @jax.jit
    def through(tree, key):
        payload, _ = channel.encode(state, tree, key)
        return channel.decode(payload)

    decoded = through(tree, jax.random.key(0))
    assert jax.tree.structure(decoded) == jax.tree.structure(tree)


@pytest.mark.parametrize("name", ["uniform", "poisson", "weighted", "cyclic"])
def test_samplers(name):
    sampler: Sampler = {
        "uniform": samplers.uniform(100, 5),
        "poisson": samplers.poisson(100, 0.05),
        "weighted": samplers.weighted(np.arange(1.0, 101), 5),
        "cyclic": samplers.cyclic(100, 5),
    }[name]
    ids, n_active, _ = jax.jit(sampler.draw)(sampler.init(), jax.random.key(1))
    found = np.asarray(ids[: int(n_active)])
    assert len(set(found.tolist())) == len(found)


def test_an_adapter():
    class Model(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.layer(x)

    with jax.numpy_rank_promotion("allow"):  # flax adds a bias of one axis
        graphdef, delta, backbone = peft.apply(
            Model(), peft.lora(rank=2, targets=["layer"])
        )

        @jax.jit
        def loss(delta):
            return jnp.sum(nnx.merge(graphdef, delta, backbone)(jnp.ones((4, 3))) ** 2)

        gradient = jax.grad(loss)(delta)
    assert (
        ffm.trees.difference(ffm.trees.shapes(delta), ffm.trees.shapes(gradient))
        is None
    )


def test_a_kernel():
    mask = kernels.top_k_mask(jnp.array([3.0, -5.0, 1.0, 2.0]), 2)
    assert mask.tolist() == [True, True, False, False]


def test_a_leak_is_found():
    kept = []

    @jax.jit
    def leaks(x):
        kept.append(x)
        return x

    with pytest.raises(Exception, match="Leaked"):
        leaks(jnp.float32(1))


def test_a_promotion_is_found():
    with pytest.raises(ValueError, match="could not be broadcast"):
        jnp.ones((2, 3)) + jnp.ones(3)
