"""Two adapters in one model, and the weight that test-time personalisation gives each
of them (Yang et al. 2024).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft
from fedjax_fm.peft.dual_lora import instance_mix, pooled, two_adapters
from fedjax_fm.peft.method import parameter_paths

B = 4


def ids_and_mask():
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 700, (B, 10)))
    return ids, (jnp.arange(10) < jnp.array([[10], [6], [3], [9]])).astype(jnp.int32)


def moved(delta, seed):
    leaves, structure = jax.tree.flatten(delta)
    keys = jax.random.split(jax.random.key(seed), len(leaves))

    def draw(x, key):
        return x + 0.2 * jax.random.normal(key, x.shape)

    return jax.tree.unflatten(
        structure, [draw(x, key) for x, key in zip(leaves, keys, strict=True)]
    )


class Case(NamedTuple):
    """LoRA in stacked layers, with a trained head in the classifier."""

    model: nnx.Module
    graphdef: nnx.GraphDef
    deltas: tuple  # shared, private
    backbone: nnx.State
    mixed: Callable  # (mix, private) -> logits of ids_and_mask()


@pytest.fixture(scope="module", params=["bert", "llama"])
def case(request, tiny_bert, tiny_llama):
    if request.param == "bert":
        model = ffm.models.from_pretrained(tiny_bert, num_labels=3, pooling="mean")
        method = peft.lora(4, 8, targets="query|value")
    else:
        model = ffm.models.from_pretrained(tiny_llama)
        method = peft.lora(4, 8, targets="q_proj|down_proj")
    graphdef, delta, backbone = peft.apply(model, method)
    shared, private = moved(delta, 1), moved(delta, 2)
    mixed = jax.jit(
        lambda mix, private: two_adapters(graphdef, shared, private, backbone, mix)(
            *ids_and_mask()
        )
    )
    return Case(
        model=model,
        graphdef=graphdef,
        deltas=(shared, private),
        backbone=backbone,
        mixed=mixed,
    )


def test_dropout_acts_with_two_adapters_as_with_one(tiny_bert):
    """Mix 0 and 1 are the single adapters under one key; between them both read one draw."""
    model = ffm.models.from_pretrained(tiny_bert, num_labels=3, pooling="mean")
    graphdef, delta, backbone = peft.apply(
        model, peft.lora(4, 8, targets="query|value", dropout=0.5)
    )
    deltas, key = (moved(delta, 1), moved(delta, 2)), jax.random.key(7)
    one = jax.jit(
        lambda delta, key: nnx.merge(graphdef, delta, backbone)(
            *ids_and_mask(), key=key
        )
    )
    two = jax.jit(
        lambda mix, key: two_adapters(graphdef, *deltas, backbone, mix)(
            *ids_and_mask(), key=key
        )
    )
    for mix, delta in enumerate(deltas):
        np.testing.assert_allclose(
            two(jnp.float32(mix), key), one(delta, key), atol=1e-5
        )
        assert (
            np.abs(two(jnp.float32(mix), key) - two(jnp.float32(mix), None)).max()
            > 1e-3
        )
    halves = two(jnp.full(B, 0.5), key)
    assert np.abs(halves - two(jnp.full(B, 0.5), jax.random.key(8))).max() > 1e-3


@pytest.mark.parametrize("mix", [float("nan"), float("inf"), True, "0.5", None])
def test_a_mix_is_a_number(mix, case):
    with pytest.raises((TypeError, ValueError), match="mix="):
        two_adapters(case.graphdef, *case.deltas, case.backbone, mix)


def test_mix_zero_and_one_are_the_single_adapters(case):
    one = jax.jit(
        lambda delta: nnx.merge(case.graphdef, delta, case.backbone)(*ids_and_mask())
    )
    single = [one(delta) for delta in case.deltas]
    assert np.abs(single[0] - single[1]).max() > 1e-2
    for mix, expected in enumerate(single):
        np.testing.assert_allclose(
            case.mixed(jnp.float32(mix), case.deltas[1]), expected, rtol=1e-5, atol=1e-5
        )


def test_each_row_has_its_own_mix(case):
    mix = jnp.array([0.0, 0.3, 1.0, -0.2])
    together = case.mixed(mix, case.deltas[1])
    for row in range(B):
        alone = case.mixed(mix[row], case.deltas[1])
        np.testing.assert_allclose(together[row], alone[row], rtol=1e-5, atol=1e-5)


def test_mixed_model_is_the_model_with_the_mixed_update_merged(case):
    """W + (1 - a) s A_g B_g + a s A_p B_p in a plain model without LoRA, and a head of
    mixed weights.
    """
    a, plain = 0.3, nnx.clone(case.model)
    state = {
        tuple(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(plain))
    }
    trees = [
        {tuple(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(d)}
        for d in case.deltas
    ]
    for path in trees[0]:
        g, p = (tree[path] for tree in trees)
        if path[-1] == "lora_a":
            other = (*path[:-1], "lora_b")
            kernel = state[(*path[:-1], "kernel")]
            kernel[...] = kernel[...] + 2 * (
                (1 - a) * g @ trees[0][other] + a * p @ trees[1][other]
            )
        elif path[-1] != "lora_b":
            state[path][...] = jnp.asarray((1 - a) * g + a * p)
    expected = nnx.jit(lambda model: model(*ids_and_mask()))(plain)
    np.testing.assert_allclose(
        case.mixed(jnp.float32(a), case.deltas[1]), expected, rtol=1e-4, atol=1e-4
    )


def test_private_gradient_vanishes_at_mix_zero_only(case):
    gradient = jax.jit(
        jax.grad(lambda private, mix: jnp.sum(case.mixed(mix, private) ** 2))
    )
    for mix in (0.0, 0.5):
        for leaf in jax.tree.leaves(gradient(case.deltas[1], jnp.float32(mix))):
            assert (np.abs(leaf).max() == 0) == (mix == 0)


def test_what_cannot_be_mixed_is_refused(tiny_bert):
    model = ffm.models.from_pretrained(tiny_bert, num_labels=3)

    def norms(model, key):
        return {path for path in parameter_paths(model) if "LayerNorm" in path}

    graphdef, delta, backbone = peft.apply(model, peft.Method("norms", norms))
    with pytest.raises(
        ValueError, match=r"mixes LoRA and linear layers, but .* is a LayerNorm"
    ):
        two_adapters(graphdef, delta, delta, backbone, 0.5)
    with pytest.raises(ValueError, match=r"mix of shape \[\] or \[B\], got \[2, 2\]"):
        two_adapters(graphdef, delta, delta, backbone, jnp.zeros((2, 2)))


def test_weights_of_instances_in_closed_form():
    local = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    query = jnp.array([[3.0, 0.0], [1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])
    cosines = np.array([0.5, np.sqrt(0.5), -np.sqrt(0.5), 0.0])
    np.testing.assert_allclose(instance_mix(query, local), 0.5 * cosines, atol=1e-6)
    np.testing.assert_allclose(
        instance_mix(query, local, 0.8), 0.8 * cosines, atol=1e-6
    )
    np.testing.assert_allclose(
        instance_mix(query, local, 0.8, "shared"), 1 - 0.8 * cosines, atol=1e-6
    )
    with pytest.raises(ValueError, match="omega_weighs"):
        instance_mix(query, local, omega_weighs="global")


def test_weights_do_not_depend_on_the_scale_of_features():
    rng = np.random.default_rng(0)
    query, local = (
        rng.normal(size=(6, 8)).astype(np.float32),
        rng.normal(size=(5, 8)).astype(np.float32),
    )
    expected = instance_mix(query, local)
    np.testing.assert_allclose(
        instance_mix(1e4 * query, 1e-4 * local), expected, atol=1e-6
    )
    scales = rng.uniform(0.1, 10, (5, 1)).astype(
        np.float32
    )  # of every instance by itself
    np.testing.assert_allclose(instance_mix(query, scales * local), expected, atol=1e-6)
    assert np.abs(expected).max() <= 0.5
    rows = [
        np.mean([np.dot(q, x) / np.linalg.norm(q) / np.linalg.norm(x) for x in local])
        for q in query
    ]
    np.testing.assert_allclose(expected, 0.5 * np.array(rows), atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_features_of_texts_leave_padding_out(side):
    hidden = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    lengths = [5, 1, 3]
    places = [range(n) if side == "right" else range(5 - n, 5) for n in lengths]
    mask = np.array([[t in real for t in range(5)] for real in places])
    hidden[~mask] = np.nan
    last = np.stack(
        [row[list(real)][-1] for row, real in zip(hidden, places, strict=True)]
    )
    mean = np.stack(
        [row[list(real)].mean(0) for row, real in zip(hidden, places, strict=True)]
    )
    np.testing.assert_array_equal(pooled(jnp.asarray(hidden), jnp.asarray(mask)), last)
    np.testing.assert_allclose(
        pooled(jnp.asarray(hidden), jnp.asarray(mask), "mean"), mean, atol=1e-6
    )
    with pytest.raises(ValueError, match="got by='cls'"):
        pooled(jnp.asarray(hidden), jnp.asarray(mask), "cls")
