"""Attacks recover a planted text from what they should, and not from what they should not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_fm import evaluation
from fedjax_fm.evaluation import (
    input_of_gradient,
    invert_gradient,
    nearest_tokens,
    token_f1,
    tokens_of_gradient,
)

VOCABULARY, WIDTH, LENGTH, HIDDEN, CLASSES = 40, 6, 5, 16, 3
TEXT, LABEL = np.array([7, 31, 2, 7, 19]), 1


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


WEIGHTS = {
    "embedding": draw(0, VOCABULARY, WIDTH),
    "first": {
        "kernel": draw(1, LENGTH * WIDTH, HIDDEN) / 15,
        "bias": draw(2, HIDDEN) / 5,
    },
    "second": draw(3, HIDDEN, CLASSES) / 2,
}


def loss_of_embedded(layers, embedded):
    hidden = embedded.reshape(-1) @ layers["first"]["kernel"] + layers["first"]["bias"]
    logits = jnp.tanh(hidden) @ layers["second"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABEL)


def loss(weights, text):
    return loss_of_embedded(weights, weights["embedding"][text])


GRADIENT = jax.grad(loss)(WEIGHTS, TEXT)
LAYERS = {name: WEIGHTS[name] for name in ("first", "second")}
SEEN = {name: GRADIENT[name] for name in LAYERS}
of_layers = jax.grad(loss_of_embedded)


def noisy(tree, multiplier=1.0):
    """As DP-FedAvg would release one client: clipped to 1, with noise of that size."""
    norm = optax.tree.norm(tree)
    clipped = jax.tree.map(lambda x: x / jnp.maximum(norm, 1.0), tree)
    leaves, form = jax.tree.flatten(clipped)
    noise = [multiplier * draw(10 + i, *x.shape) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(form, [x + y for x, y in zip(leaves, noise, strict=True)])


# Embeddings


def test_rows_with_a_gradient_are_the_tokens_that_occurred():
    found = tokens_of_gradient(GRADIENT["embedding"])
    assert found.tolist() == sorted(set(TEXT.tolist()))
    assert token_f1(found, sorted(set(TEXT.tolist()))) == 1.0


def test_local_steps_name_them_too_and_noise_names_everybody():
    change = WEIGHTS["embedding"]
    for _ in range(3):
        weights = {**WEIGHTS, "embedding": change}
        change = change - 0.1 * jax.grad(loss)(weights, TEXT)["embedding"]
    found = tokens_of_gradient(change - WEIGHTS["embedding"])
    assert found.tolist() == sorted(set(TEXT.tolist()))
    released = noisy(GRADIENT)["embedding"]
    assert len(tokens_of_gradient(released)) == VOCABULARY
    largest = np.argsort(-np.linalg.norm(released, axis=1))[:LENGTH]
    assert token_f1(largest, TEXT) < 0.5


def test_a_frozen_table_says_nothing():
    frozen = np.zeros((VOCABULARY, WIDTH))
    assert tokens_of_gradient(frozen).tolist() == []


# A linear layer


def test_a_linear_layer_gives_its_input_away():
    first = SEEN["first"]
    found = input_of_gradient(first["kernel"], first["bias"])
    np.testing.assert_allclose(
        found, WEIGHTS["embedding"][TEXT].ravel(), rtol=1e-4, atol=1e-5
    )
    tokens = nearest_tokens(found.reshape(LENGTH, WIDTH), WEIGHTS["embedding"])
    assert tokens.tolist() == TEXT.tolist()  # in their order


def test_noise_hides_the_input():
    first = noisy(SEEN)["first"]
    found = input_of_gradient(first["kernel"], first["bias"])
    tokens = nearest_tokens(found.reshape(LENGTH, WIDTH), WEIGHTS["embedding"])
    assert token_f1(tokens, TEXT) < 0.5


def test_several_rows_leave_a_weighted_mean():
    x, dy = draw(4, 3, 5).astype(np.float64), draw(5, 3, 4).astype(np.float64)
    bias = dy.sum(0)
    shares = dy @ bias / (bias @ bias)
    np.testing.assert_allclose(input_of_gradient(x.T @ dy, bias), shares @ x)
    np.testing.assert_allclose(shares.sum(), 1)


def test_lora_leaks_a_sketch_while_b_is_zero():
    """dA = 0 and dB = s (A x) dy^T: only r numbers of the input. With the rows of A
    known, the input itself is not determined."""
    x, dy, a = draw(6, 8), draw(7, 4), draw(8, 8, 2)

    def output(factors):
        return (x @ factors["a"]) @ factors["b"] @ dy

    factors = {"a": a, "b": np.zeros((2, 4), np.float32)}
    gradient = jax.grad(output)(factors)
    assert not np.any(gradient["a"])
    found = np.asarray(gradient["b"]) @ dy / (dy @ dy)
    np.testing.assert_allclose(found, x @ a, rtol=1e-4)
    assert np.linalg.matrix_rank(a) < len(x)

    # Once B has moved, dA = s x (B dy)^T: every column of it is the input, up to a factor.
    moved = {"a": a, "b": draw(11, 2, 4)}
    of_a = np.asarray(jax.grad(output)(moved)["a"])
    cosines = x @ of_a / np.linalg.norm(x) / np.linalg.norm(of_a, axis=0)
    np.testing.assert_allclose(np.abs(cosines), 1, rtol=1e-5)


# The search


def searched(observed, **how):
    def gradient_of(embedded):
        return of_layers(LAYERS, embedded)

    start = draw(9, LENGTH, WIDTH)
    found = invert_gradient(gradient_of, observed, start, steps=1500, **how)
    tokens = nearest_tokens(found.inputs, WEIGHTS["embedding"])
    return tokens, np.asarray(found.distances)


@pytest.mark.parametrize("distance", ["squared", "cosine", "tag"])
def test_the_search_finds_the_text(distance):
    schedule = optax.cosine_decay_schedule(0.1, 1500)
    tokens, distances = searched(
        SEEN, distance=distance, optimizer=optax.adam(schedule)
    )
    assert token_f1(tokens, TEXT) >= 0.8
    assert distances[-1] < 1e-2 * distances[0]


def test_the_search_fails_under_the_noise_of_differential_privacy():
    tokens, distances = searched(noisy(SEEN))
    assert token_f1(tokens, TEXT) < 0.5
    assert distances[-1] > 0.1 * distances[0]


# Numbers


def test_the_f1_counts_repetitions():
    assert token_f1([7, 7, 2], [7, 2, 2]) == pytest.approx(2 / 3)
    assert token_f1([], []) == 0.0
    assert token_f1([1], [2]) == 0.0
    assert token_f1([1, 2], [1, 2, 3, 4]) == pytest.approx(2 / 3)


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\[tokens, width\], got shape \(3,\)"):
        tokens_of_gradient(np.zeros(3))
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(2,\)"):
        input_of_gradient(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="bias with a gradient"):
        input_of_gradient(np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(TypeError, match=r"optax optimizer, got optimizer=0\.1"):
        evaluation.invert_gradient(abs, jnp.zeros(2), jnp.zeros(2), optimizer=0.1)
