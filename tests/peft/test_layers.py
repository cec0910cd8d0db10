"""Chosen layers of a stack: the same function, frozen layers as leaves of their own;
what patterns see; combinations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import peft, trees
from fedjax_fm.models.stacked import Segments
from fedjax_fm.peft.targets import find_modules, plain_names

IDS = np.array([[3, 9, 4, 7, 1, 2], [5, 8, 8, 2, 6, 3]])


@pytest.mark.parametrize(
    ("chosen", "lengths"),
    [([1], [1, 1, 1]), ([0, 1], [2, 1]), ([-1], [2, 1]), ([0, 1, 2], [3])],
)
def test_a_stack_cut_into_runs_computes_the_same(llama, run, chosen, lengths):
    graphdef, delta, backbone = peft.apply(llama, peft.on_layers(peft.full(), chosen))
    layers = nnx.merge(graphdef, delta, backbone).model.layers
    assert isinstance(layers, Segments)
    assert [part.mlp.up_proj.kernel.shape[0] for part in layers.parts] == lengths
    per_layer = trees.size(nnx.state(llama.model.layers)) // 3
    assert trees.size(delta) == len(chosen) * per_layer
    np.testing.assert_allclose(
        run((graphdef, delta, backbone), IDS), llama(IDS), atol=1e-6
    )


def test_gradients_of_the_chosen_layers_are_those_of_the_whole_model(llama):
    def loss(logits):
        return jnp.sum(jnp.tanh(logits))

    graphdef, delta, backbone = peft.apply(llama, peft.on_layers(peft.full(), [2]))
    ours = jax.jit(jax.grad(lambda d: loss(nnx.merge(graphdef, d, backbone)(IDS))))(
        delta
    )
    whole_def, whole, rest = peft.apply(llama, peft.full())
    theirs = jax.jit(jax.grad(lambda d: loss(nnx.merge(whole_def, d, rest)(IDS))))(
        whole
    )
    theirs = {
        tuple(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(theirs)
    }
    for path, leaf in nnx.to_flat_state(ours):
        assert path[:4] == ("model", "layers", "parts", 1)
        np.testing.assert_allclose(
            leaf[...][0], theirs[("model", "layers", *map(str, path[4:]))][2], atol=1e-5
        )


def test_frozen_layers_have_no_copy_per_client(llama):
    """Under vmap over deltas, what the chosen layer does not feed stays one computation."""
    graphdef, delta, backbone = peft.apply(llama, peft.on_layers(peft.full(), [2]))
    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), delta)

    def first_layers(delta):
        model = nnx.merge(graphdef, delta, backbone).model
        return model.layers.parts[0].mlp.up_proj.kernel[...].sum()

    assert jax.vmap(first_layers, out_axes=None)(both) == first_layers(
        delta
    )  # out_axes=None refuses batched outputs


def test_methods_inside_layers_see_paths_inside_them(bert, text, run):
    method = peft.on_layers(
        peft.lora(2, targets=r"^attention\.self\.(query|value)$"), [1]
    )
    graphdef, delta, backbone = peft.apply(bert, method)
    assert trees.size(delta) == 2 * 2 * 16 + 18
    np.testing.assert_allclose(
        run((graphdef, delta, backbone), *text), bert(*text), atol=1e-6
    )


def test_two_choices_of_layers_are_combined(llama, run):
    method = peft.combine(
        peft.on_layers(peft.lora(2, targets=["q_proj"]), [0]),
        peft.on_layers(peft.ia3(), [0, 2]),
        peft.on_layers(peft.by_path(lambda path: "norm" in path), [1, 2]),
    )
    graphdef, delta, backbone = peft.apply(llama, method)
    assert trees.size(delta) == 2 * (8 + 8) + 2 * (4 + 4 + 12) + 2 * 2 * 8
    model = nnx.merge(graphdef, delta, backbone)
    assert len(model.model.layers.parts) == 3
    np.testing.assert_allclose(
        run((graphdef, delta, backbone), IDS), llama(IDS), atol=1e-6
    )
    assert "is_trained" not in str(graphdef)


def test_later_methods_find_modules_by_their_first_names(llama):
    method = peft.combine(
        peft.lora(2, targets=["q_proj"]),
        peft.on_layers(peft.ia3(["q_proj"], None), [1]),
    )
    model = nnx.merge(*peft.apply(llama, method))
    paths = find_modules(model, r"layers\.self_attn\.q_proj$", nnx.Linear)
    assert set(paths) == {
        "model.layers.parts.0.self_attn.q_proj.base",
        "model.layers.parts.1.self_attn.q_proj.base.base",
        "model.layers.parts.2.self_attn.q_proj.base",
    }
    plain = plain_names(model)
    assert {plain(path) for path in paths} == {"model.layers.self_attn.q_proj"}


def test_the_order_of_a_combination_says_what_is_scaled(net, shaken):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    lora, ia3 = peft.lora(2, targets=["blocks.0"]), peft.ia3(["blocks.0"], None)
    base = net.blocks[0](x)
    for methods, expected in (
        ((ia3, lora), lambda scale, update: scale * (base + update)),
        ((lora, ia3), lambda scale, update: scale * base + update),
    ):
        graphdef, delta, backbone = peft.apply(net, peft.combine(*methods))
        delta = shaken(delta, 0.5)
        leaves = {str(path[-1]): leaf[...] for path, leaf in nnx.to_flat_state(delta)}
        update = x @ leaves["lora_a"] @ leaves["lora_b"]
        found = nnx.merge(graphdef, delta, backbone).blocks[0](x)
        np.testing.assert_allclose(found, expected(leaves["ia3"], update), atol=1e-5)


def test_predicates_see_plain_paths(llama):
    seen = set()
    method = peft.combine(
        peft.lora(2, targets=["q_proj"]),
        peft.by_path(lambda path: seen.add(path) or "norm" in path),
    )
    peft.apply(llama, method)
    assert "model.layers.self_attn.q_proj.kernel" in seen
    assert "model.layers.self_attn.q_proj.lora_a" in seen
    assert not [path for path in seen if ".base." in path]
