"""LoRA-SB's layer: fixed singular vectors, a trained square between them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft
from fedjax_fm.peft.lora_sb import LoRASBLinear, first_gradients, lora_sb

QUERY = ("bert", "encoder", "layer", "attention", "self", "query")


def ids_and_mask():
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 900, (4, 10)))
    return ids, (jnp.arange(10) < jnp.array([[10], [6], [3], [9]])).astype(jnp.int32)


def cross_entropy(model):
    logits = model(*ids_and_mask())
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1, 0, 1])).mean()


@pytest.fixture(scope="module")
def classifier(tiny_bert):
    return ffm.models.from_pretrained(tiny_bert, num_labels=2, pooling="mean")


def leaves_by_path(tree):
    return {tuple(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(tree)}


def test_r_zero_is_the_base_model_and_r_alone_is_trained(classifier):
    graphdef, delta, backbone = peft.apply(classifier, lora_sb(3, targets="query|value"))
    np.testing.assert_array_equal(nnx.merge(graphdef, delta, backbone)(*ids_and_mask()), classifier(*ids_and_mask()))
    assert ffm.trees.size(delta) == 2 * 2 * 3**2 + 16 * 2 + 2  # layers x matrices x r^2, head
    frozen, trained = leaves_by_path(backbone), leaves_by_path(delta)
    assert trained[(*QUERY, "lora_r")].shape == (2, 3, 3)
    a, b = frozen[(*QUERY, "lora_a")], frozen[(*QUERY, "lora_b")]
    for gram in (a.swapaxes(1, 2) @ a, b @ b.swapaxes(1, 2)):
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-5)
    loss = lambda delta: cross_entropy(nnx.merge(graphdef, delta, backbone))
    assert np.abs(leaves_by_path(jax.grad(loss)(delta))[(*QUERY, "lora_r")]).max() > 1e-5  # it can start at zero


def test_the_kernels_own_singular_vectors_unless_updates_are_given(classifier):
    kernel = leaves_by_path(nnx.state(classifier))[(*QUERY, "kernel")]
    gradients = first_gradients(classifier, cross_entropy, targets="query|value")
    assert sorted(gradients) == [".".join(QUERY), ".".join((*QUERY[:-1], "value"))]
    for updates, matrix in ((None, kernel), (gradients, gradients[".".join(QUERY)])):
        backbone = leaves_by_path(peft.apply(classifier, lora_sb(2, targets="query|value", updates=updates))[2])
        a, b = backbone[(*QUERY, "lora_a")], backbone[(*QUERY, "lora_b")]
        u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64))
        best = np.einsum("lir,lr,lro->lio", u[..., :2], s[:, :2], vt[:, :2])
        projected = a @ (a.swapaxes(1, 2) @ np.asarray(matrix) @ b.swapaxes(1, 2)) @ b
        np.testing.assert_allclose(projected, best, atol=1e-4 * s.max())


def test_first_gradients_are_finite_differences(classifier):
    name = ".".join((*QUERY[:-1], "value"))
    found = first_gradients(classifier, cross_entropy, targets=["value"])[name]
    step = 1e-2

    def moved(by):
        model = nnx.clone(classifier)
        kernel = model.bert.encoder.layer.attention.self.value.kernel
        kernel[...] = kernel[...].at[1, 3, 5].add(by)
        return float(cross_entropy(model))

    assert found[1, 3, 5] == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=2e-2)


def test_the_layer_is_x_w_plus_x_a_r_b():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    base = nnx.Linear(5, 4, rngs=nnx.Rngs(0))
    layer = LoRASBLinear(base, draw(5, 2), draw(2, 4), scaling=1.5)
    layer.lora_r[...] = draw(2, 2)
    x = draw(3, 5)
    expected = base(x) + 1.5 * x @ (layer.lora_a[...] @ layer.lora_r[...] @ layer.lora_b[...])
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)
    holder = nnx.Dict(layer=layer)
    merged = peft.merge(holder).layer
    assert type(merged) is nnx.Linear
    np.testing.assert_allclose(merged(x), expected, rtol=1e-5)


def test_impossible_arguments_are_refused(classifier):
    for method, message in (
        (lambda: lora_sb(0, targets="query"), "rank=0"),
        (lambda: peft.apply(classifier, lora_sb(17, targets="query")), "rank=17 exceeds"),
        (lambda: peft.apply(classifier, lora_sb(2, targets="query", updates={})), "updates hold nothing for 'bert"),
    ):
        with pytest.raises(ValueError, match=message):
            method()
