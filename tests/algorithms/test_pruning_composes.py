"""Pruning beside what others bring: channels on kept entries, adapters on 4-bit layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from mlp_problem import make_clients, make_trees, mlp_loss
from small_network import run

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels, models, peft

CLIENTS = make_clients(sizes=(6, 3, 5))
DELTA, BACKBONE = make_trees()
WALK = {"local_steps": 2, "batch_size": 8}
MASKS = {"w": np.arange(12).reshape(3, 4) % 3 == 0}
TASK, SGD = ffm.Task(mlp_loss), optax.sgd(0.05)
METHODS = {
    "gradual_pruning": {"final_sparsity": 0.75, "initial_sparsity": 0.5, "last": 1},
    "fedtiny": {"masks": MASKS, "every": 1, "stop": 2},
    "prunefl": {"time": algorithms.RoundTime(1.0, 0.1), "every": 1, "masks": MASKS},
}


def made(name):
    return getattr(algorithms, name)(TASK, SGD, **WALK, **METHODS[name])


UPLINKS = {
    "gradual_pruning": channels.quantize(8),
    # squares of gradients are of another size than updates
    "prunefl": channels.per_leaf(
        ("kept", channels.quantize(8)), otherwise=channels.identity()
    ),
}


@pytest.mark.parametrize("name", UPLINKS)
def test_an_uplink_that_quantises_what_is_kept(name):
    """Nearly the run without it, pruned entries exactly zero, at fewer bytes."""
    _, state, exact = run(made(name), CLIENTS, DELTA, 2, BACKBONE)
    how = {"uplink": UPLINKS[name]}
    _, coarse, metrics = run(made(name), CLIENTS, DELTA, 2, BACKBONE, **how)
    assert (metrics["uplink_bytes"] < exact["uplink_bytes"]).all()
    mask = np.asarray(coarse.carry.server.masks["w"])
    assert not np.asarray(coarse.delta["w"])[~mask].any()
    np.testing.assert_allclose(coarse.delta["v"], state.delta["v"], atol=0.05)


def test_places_are_not_quantised():
    with pytest.raises(TypeError, match=r"gradients\.w\.places is uint8"):
        run(made("fedtiny"), CLIENTS, DELTA, 1, BACKBONE, uplink=channels.quantize(8))


def test_adapters_on_layers_of_four_bits():
    """LoRA's factors are pruned by their paths, a module called value among them."""

    class Model(nnx.Module):
        def __init__(self):
            self.value = nnx.Linear(64, 4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.value(x)

    small = models.quantize(Model(), "nf4", targets="value")
    adapted = peft.apply(small, peft.lora(2, targets=["value"]))

    def loss(delta, backbone, batch, key):
        return jnp.sum(adapted.model(delta, backbone)(batch["x"]) ** 2, axis=-1), {}

    method = algorithms.gradual_pruning(
        ffm.Task(loss),
        SGD,
        pruned=r"value\.lora_a",
        final_sparsity=0.75,
        last=1,
        **WALK,
    )
    rng = np.random.default_rng(0)
    clients = [{"x": rng.normal(size=(3, 64)).astype("f4")} for _ in range(2)]
    _, state, metrics = run(method, clients, adapted.delta, 2, adapted.backbone)
    assert metrics["density value.lora_a"].tolist() == [1, 0.25]
    (mask,) = state.carry.server.masks.values()
    assert int(mask.sum()) == 32
    factors = jax.tree.leaves(nnx.to_pure_dict(state.delta))
    assert sorted(int(np.sum(x != 0)) for x in factors) == [8, 32]
