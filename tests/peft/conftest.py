"""Small random models: an encoder, a decoder, a vision transformer, and one that a user
might write.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models

D, WIDE, LAYERS, LABELS, VOCABULARY = 8, 12, 2, 2, 31


def filled(make, seed=0):
    """A module with every parameter drawn from numpy: norms and biases are not ones and
    zeros, which hide mistakes.
    """
    rng = np.random.default_rng(seed)
    graphdef, state = nnx.split(nnx.eval_shape(make))
    middle = {"scale": 1.0}

    def draw(path, v):
        return jnp.asarray(
            middle.get(str(path[-1]), 0.0) + 0.3 * rng.normal(size=v.shape), v.dtype
        )

    leaves = [(path, v.replace(draw(path, v))) for path, v in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


@pytest.fixture(scope="session")
def bert():
    """A classifier of 2 layers, d = 8."""
    config = models.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=WIDE,
        max_position_embeddings=24,
    )
    return filled(
        lambda: models.BertForSequenceClassification(config, LABELS, "cls", nnx.Rngs(0))
    )


@pytest.fixture(scope="session")
def llama():
    """A decoder of 3 layers, d = 8, two query heads to a key head."""
    config = models.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        intermediate_size=WIDE,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=24,
    )
    return filled(lambda: models.LlamaForCausalLM(config, nnx.Rngs(0)))


class Net(nnx.Module):
    """A user's model: blocks in a list, a norm, a head under a name of its own."""

    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = x + jnp.tanh(block(x))
        return self.out(self.norm(x))


@pytest.fixture(scope="session")
def net():
    """`Net` with random numbers."""
    return filled(lambda: Net(nnx.Rngs(0)))


@pytest.fixture(scope="session")
def text():
    """(ids [3, 6], mask) with padding on the right."""
    ids = jnp.asarray(np.random.default_rng(1).integers(0, VOCABULARY, (3, 6)))
    return ids, (jnp.arange(6) < jnp.array([[6], [4], [2]])).astype(jnp.int32)


@pytest.fixture(scope="session")
def by_path():
    """tree -> {dotted path: numpy array}."""
    return lambda tree: {
        ".".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(tree)
    }


@pytest.fixture(scope="session")
def shaken():
    """(tree, scale=0.1) -> the same tree with noise, so that nothing is at its initial value."""

    def shake(tree, scale=0.1, seed=0):
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda x: x + jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), tree
        )

    return shake


@pytest.fixture(scope="session")
def run():
    """(parts, *args, **kwargs) -> the outputs of the adapted model, compiled: op by op
    takes much longer.
    """

    def call(parts, *args, **kwargs):
        graphdef, delta, backbone = parts
        forward = jax.jit(
            lambda delta, backbone, args, kwargs: nnx.merge(graphdef, delta, backbone)(
                *args, **kwargs
            )
        )
        return np.asarray(forward(delta, backbone, args, kwargs))

    return call
