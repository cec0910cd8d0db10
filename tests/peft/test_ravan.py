"""RAVAN's layer, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import peft
from fedjax_fm.peft.ravan import RavanLinear

N_IN, N_OUT, HEADS, RANK = 8, 7, 3, 2


def layer_of(alpha=None, **how):
    model = nnx.Dict(layer=nnx.Linear(N_IN, N_OUT, rngs=nnx.Rngs(0)))
    method = peft.ravan(RANK, alpha, heads=HEADS, targets=["layer"], **how)
    layer = nnx.merge(*peft.apply(model, method, jax.random.key(1))).layer
    assert isinstance(layer, RavanLinear)
    return model.layer, layer


def shaken(layer):
    rng = np.random.default_rng(0)
    layer.lora_h[...] = rng.normal(size=(HEADS, RANK, RANK)).astype(np.float32)
    layer.lora_s[...] = rng.normal(size=HEADS).astype(np.float32)
    return layer


def by_hand(layer, scaling):
    """scaling sum_i s_i A_i H_i B_i, head by head."""
    whole = np.zeros((N_IN, N_OUT))
    for i in range(HEADS):
        part = slice(i * RANK, (i + 1) * RANK)
        a, b = (
            np.asarray(layer.lora_a[...])[:, part],
            np.asarray(layer.lora_b[...])[part],
        )
        whole += float(layer.lora_s[...][i]) * a @ np.asarray(layer.lora_h[...][i]) @ b
    return scaling * whole


@pytest.mark.parametrize("basis", ["orthonormal", "gaussian"])
def test_the_update_is_the_sum_over_heads(basis):
    base, layer = layer_of(alpha=3.0, basis=basis)
    expected = by_hand(shaken(layer), 1.5)
    x = np.random.default_rng(1).normal(size=(2, 4, N_IN)).astype(np.float32)
    np.testing.assert_allclose(layer.product(), expected, atol=1e-5)
    np.testing.assert_allclose(layer(x), base(x) + x @ expected, atol=1e-5)
    merged = peft.merge(nnx.Dict(layer=layer)).layer
    np.testing.assert_allclose(merged(x), layer(x), atol=1e-5)


def test_heads_of_an_orthonormal_basis_do_not_overlap():
    """The norm of the update is that of all s_i H_i, its rank the sum of theirs."""
    _, layer = layer_of()
    layer = shaken(layer)
    scaled = np.asarray(layer.lora_s[...])[:, None, None] * np.asarray(
        layer.lora_h[...]
    )
    values = np.linalg.svd(layer.product(), compute_uv=False)
    expected = np.sort(np.linalg.svd(scaled, compute_uv=False).ravel())[::-1]
    np.testing.assert_allclose(values[: HEADS * RANK], expected, atol=1e-5)
    np.testing.assert_allclose(values[HEADS * RANK :], 0, atol=1e-5)


def test_it_starts_from_the_base_and_scales_have_no_gradient_there():
    base, layer = layer_of()
    x = np.random.default_rng(1).normal(size=(4, N_IN)).astype(np.float32)
    np.testing.assert_array_equal(layer(x), base(x))

    graphdef, state = nnx.split(layer)

    def loss(state):
        return jnp.sum(nnx.merge(graphdef, state)(x) ** 2)

    gradients = jax.grad(loss)(state)
    of_h, of_s = (gradients[name][...] for name in ("lora_h", "lora_s"))
    assert np.all(np.any(of_h != 0, axis=(1, 2)))
    assert not np.any(of_s)


def test_a_basis_that_does_not_fit_is_refused():
    model = nnx.Dict(layer=nnx.Linear(N_IN, N_OUT, rngs=nnx.Rngs(0)))
    method = peft.ravan(2, heads=4, targets=["layer"])
    said = r"at most 7, .*heads=4, rank=2; basis='gaussian'"
    with pytest.raises(ValueError, match=said):
        peft.apply(model, method)


def test_stacked_layers_and_folding(bert, text, run, shaken, by_path):
    """On an encoder whose layers are one stack: merged, it computes the same."""
    method = peft.ravan(2, heads=2, targets=["query"])
    graphdef, delta, backbone = peft.apply(bert, method)
    adapted = nnx.merge(graphdef, shaken(delta, 0.2), backbone)
    nothing = nnx.State({})
    expected = run((*nnx.split(adapted), nothing), *text)
    merged = run((*nnx.split(peft.merge(adapted)), nothing), *text)
    np.testing.assert_allclose(merged, expected, atol=1e-5)
    assert np.abs(expected - bert(*text)).max() > 1e-3
